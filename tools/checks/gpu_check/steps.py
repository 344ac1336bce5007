"""The table of steps. Their limits add up to at most 8.5 minutes."""

from __future__ import annotations

from tools.checks.gpu_check.runner import Step

_HERE = "tools.checks.gpu_check"

STEPS = (
    Step(
        "environment",
        "versions, the CUDA provider starts, ceilings of copies and matmul",
        20,
        f"{_HERE}.environment:check_environment",
    ),
    Step(
        "photos",
        "generated photos of 500 pixels, 1080p and 12 megapixels",
        20,
        f"{_HERE}.preparation:prepare_photos",
    ),
    Step(
        "bundles",
        "a MobileNetV2 run, exported for images and for tensors",
        50,
        f"{_HERE}.preparation:prepare_bundles",
        ("photos",),
    ),
    Step(
        "placement",
        "ONNX Runtime: placement, the CPU's logits, image sizes, no fallback",
        35,
        f"{_HERE}.placement:check_placement",
        ("bundles",),
    ),
    Step(
        "step_rate",
        "training MobileNetV2 from JPEG against synthetic data on the device",
        75,
        f"{_HERE}.step_rate:check_step_rate",
        ("photos",),
    ),
    Step(
        "process_time",
        "process start to metrics.json against a plain bf16 loop, in turns",
        70,
        f"{_HERE}.process_time:check_process_time",
        ("photos",),
    ),
    Step(
        "precision",
        "fp32, bf16 and fp16 from one seed: finite losses, equal accuracy",
        40,
        f"{_HERE}.precision:check_precision",
        ("photos",),
    ),
    Step(
        "resumption",
        "SIGTERM within a phase and between phases, then --resume",
        45,
        f"{_HERE}.resumption:check_resumption",
        ("photos",),
    ),
    Step(
        "determinism",
        "--deterministic twice: equal weights, and its cost",
        30,
        f"{_HERE}.determinism:check_determinism",
        ("photos",),
    ),
    Step(
        "process_group",
        "NCCL in one process: the group, DDP, averaged buffers",
        15,
        f"{_HERE}.process_group:check_process_group",
    ),
    Step(
        "inference",
        "PyTorch against ONNX Runtime at batches 1, 8, 64, in turns",
        90,
        f"{_HERE}.inference:check_inference",
        ("bundles",),
    ),
    Step(
        "power",
        "NVML's energy counter against sampled power; clocks, throttling",
        20,
        f"{_HERE}.power:check_power",
    ),
)
"""Ten checks, and two steps that prepare what they share."""

LIMIT_SUM_S = 510.0
BUDGET_S = 530.0
"""From the start of the command; the rest of nine minutes is for writing and ending."""


def choose_steps(names: list[str] | None) -> list[Step]:
    """The steps of these names in the table's order, with those they need; None takes all.

    Raises:
        ValueError: an unknown name.
    """
    if names is None:
        return list(STEPS)
    known = {step.name: step for step in STEPS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"Unknown step {', '.join(unknown)}. Known: {', '.join(known)}.")
    wanted = set(names)
    for step in reversed(STEPS):
        if step.name in wanted:
            wanted.update(step.needs)
    return [step for step in STEPS if step.name in wanted]
