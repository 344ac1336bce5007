"""Table of the steps, whose limits add up to at most 8.5 minutes."""

from __future__ import annotations

from tools.checks.gpu_check.runner import Step

_PACKAGE = "tools.checks.gpu_check"

STEPS = (
    Step(
        "environment",
        "versions, CUDA provider startup, peak copy and matmul rates",
        20,
        f"{_PACKAGE}.environment:check_environment",
    ),
    Step(
        "photos",
        "generated photos of 500 pixels, 1080p and 12 megapixels",
        20,
        f"{_PACKAGE}.preparation:prepare_photos",
    ),
    Step(
        "bundles",
        "a MobileNetV2 run, exported for images and for tensors",
        50,
        f"{_PACKAGE}.preparation:prepare_bundles",
        ("photos",),
    ),
    Step(
        "placement",
        "ONNX Runtime: node placement, logits, image sizes, no fallback",
        35,
        f"{_PACKAGE}.placement:check_placement",
        ("bundles",),
    ),
    Step(
        "step_rate",
        "training MobileNetV2 from JPEG compared with synthetic data on the device",
        75,
        f"{_PACKAGE}.step_rate:check_step_rate",
        ("photos",),
    ),
    Step(
        "process_time",
        "process start to metrics.json compared with a plain bf16 loop",
        70,
        f"{_PACKAGE}.process_time:check_process_time",
        ("photos",),
    ),
    Step(
        "precision",
        "fp32, bf16 and fp16 with the same seed: finite losses, equal accuracy",
        40,
        f"{_PACKAGE}.precision:check_precision",
        ("photos",),
    ),
    Step(
        "resumption",
        "SIGTERM within a phase and between phases, then --resume",
        45,
        f"{_PACKAGE}.resumption:check_resumption",
        ("photos",),
    ),
    Step(
        "determinism",
        "--deterministic twice: equal weights, and its cost",
        30,
        f"{_PACKAGE}.determinism:check_determinism",
        ("photos",),
    ),
    Step(
        "process_group",
        "NCCL in one process: the group, DDP, averaged buffers",
        15,
        f"{_PACKAGE}.process_group:check_process_group",
    ),
    Step(
        "inference",
        "PyTorch compared with ONNX Runtime at batch sizes 1, 8, 64",
        90,
        f"{_PACKAGE}.inference:check_inference",
        ("bundles",),
    ),
    Step(
        "power",
        "NVML's energy counter compared with sampled power; clocks, throttling",
        20,
        f"{_PACKAGE}.power:check_power",
    ),
)
"""Ten checks and two steps that prepare their shared inputs."""

LIMIT_SUM_S = 510.0
BUDGET_S = 530.0
"""Time from the start of the command; the rest of nine minutes is for writing the results."""


def choose_steps(names: list[str] | None) -> list[Step]:
    """Return the named steps and the steps they need, in the table's order.

    Args:
        names: names of steps; None selects all.

    Raises:
        ValueError: a name is unknown.
    """
    if names is None:
        return list(STEPS)
    all_names = [step.name for step in STEPS]
    unknown = [name for name in names if name not in all_names]
    if unknown:
        raise ValueError(f"Unknown step: {', '.join(unknown)}. Choose from {', '.join(all_names)}.")
    selected = set(names)
    for step in reversed(STEPS):
        if step.name in selected:
            selected.update(step.needs)
    return [step for step in STEPS if step.name in selected]
