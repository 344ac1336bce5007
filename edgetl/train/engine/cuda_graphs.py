"""CUDA graphs: replay forward and backward passes if that is faster than launching each kernel.

A CUDA graph launches all kernels of a pass at once, with the addresses and shapes that it was
captured with. See PyTorch's notes on CUDA graphs, "Partial-network capture".
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetl.core.artifacts.measured_choices import StepRunner
from edgetl.core.artifacts.run_metrics import StepReport
from edgetl.train.common.autotune import cached_measurement
from edgetl.train.common.precision import (
    ComputeConfig,
    Tensors,
    cudnn_autotuning,
    preserve_model_state,
)

ForwardFunction = Callable[..., Tensor]
ForwardCapture = Callable[[nn.Module, Tensors, ComputeConfig], ForwardFunction]

EAGER: Final = "eager"
CUDA_GRAPH: Final = "cuda-graph"
RECORDED_REASON = "recorded"
"""Reason of a runner that an earlier run or process chose."""
MIN_STEPS_FOR_CAPTURE = 200
"""Minimum steps of a phase: capturing and timing take about 130 steps, which must pay off."""
_MIN_SPEEDUP = 1.03
"""Minimum speed-up for which a graph is used; smaller ones are within noise."""
_ROUNDS, _REPEATS = 5, 10


class GraphedForward:
    """Forward pass that replays a CUDA graph for training batches like the captured one.

    Any other batch runs eagerly.
    """

    def __init__(
        self, eager: ForwardFunction, graphed: ForwardFunction, sample: Tensors, model: nn.Module
    ) -> None:
        """Take the captured batch, and the model whose `training` flag is checked."""
        self._eager = eager
        self._graphed = graphed
        self._model = model
        self._signature = _signature(sample)

    def __call__(self, *values: Tensor) -> Tensor:
        """Compute logits [batch, classes]."""
        is_training = self._model.training and torch.is_grad_enabled()
        if is_training and _signature(values) == self._signature:
            return self._graphed(*values)
        return self._eager(*values)


def _signature(values: Tensors) -> list[tuple[torch.Size, torch.dtype, torch.device]]:
    return [(value.shape, value.dtype, value.device) for value in values]


def cuda_graph_skip_reason(
    compute_config: ComputeConfig, world_size: int, deterministic: bool, compiled: bool, steps: int
) -> str | None:
    """Return the reason why a phase is not captured; None if capturing may be tried."""
    if compute_config.device.type != "cuda":
        return "not on a GPU"
    if world_size > 1:
        # DistributedDataParallel reduces gradients in hooks of the backward pass, which would
        # need to be captured separately.
        return "several processes"
    if deterministic:
        # It is not guaranteed that a replay draws the same dropout masks as eager steps.
        return "--deterministic"
    if compiled:
        return "--compile"
    if steps < MIN_STEPS_FOR_CAPTURE:
        return f"fewer than {MIN_STEPS_FOR_CAPTURE} steps"
    return None


def autotune_forward(
    model: nn.Module,
    module: nn.Module,
    eager: ForwardFunction,
    batch: tuple[Tensors, Tensor],
    compute_config: ComputeConfig,
    measurement_key: Mapping[str, object],
    capture: ForwardCapture | None = None,
    recorded: StepRunner | None = None,
) -> tuple[ForwardFunction, StepReport]:
    """Capture a training step and use the graph if it is faster than eager launches.

    The state of the model is preserved.

    Args:
        model: the model, with modes and trainable parameters as the phase sets them.
        module: the trainable part of the model: values to logits.
        eager: runs that part without a graph.
        batch: a full batch of the phase: (values, int64 labels), on the device.
        compute_config: device and precision.
        measurement_key: everything that the choice depends on; a choice cached on this machine
            under the same key is used again.
        capture: makes the graphed forward; None is `capture_forward`.
        recorded: the runner that an earlier run or process chose: nothing is timed.

    Returns:
        The forward pass for training, and a report. If the capture fails, it is `eager`, with the
        error as the reason.
    """
    if recorded == EAGER:
        return eager, StepReport(EAGER, {}, RECORDED_REASON)
    values = tuple(_to_channels_last(value) for value in batch[0])
    labels = batch[1]
    forwards: dict[str, ForwardFunction] = {EAGER: eager}

    def capture_once() -> ForwardFunction:
        if CUDA_GRAPH not in forwards:
            forwards[CUDA_GRAPH] = (capture or capture_forward)(module, values, compute_config)
        return forwards[CUDA_GRAPH]

    def measure() -> dict[str, dict[str, float]]:
        capture_once()
        steps = {
            name: _make_step(forward, values, labels, compute_config)
            for name, forward in forwards.items()
        }
        return {"milliseconds": time_interleaved(steps, compute_config.synchronize)}

    try:
        with preserve_model_state(model), cudnn_autotuning(True):
            if recorded == CUDA_GRAPH:
                report = StepReport(CUDA_GRAPH, {}, RECORDED_REASON)
                return GraphedForward(eager, capture_once(), values, model), report
            key = {**measurement_key, "choice of": [EAGER, CUDA_GRAPH]}
            measurement = cached_measurement(dict[str, dict[str, float]], key, measure)
            times_ms = measurement["milliseconds"]
            report = StepReport(choose_runner(times_ms), times_ms, "measured")
            if report.runner == EAGER:
                return eager, report
            return GraphedForward(eager, capture_once(), values, model), report
    except (RuntimeError, ValueError, AssertionError, TypeError) as cause:
        reason = str(cause).strip().partition("\n")[0] or type(cause).__name__
        return eager, StepReport(EAGER, {}, f"capture failed: {reason}")


def choose_runner(milliseconds: Mapping[str, float]) -> StepRunner:
    """Return `cuda-graph` if it saves more than noise explains, else `eager`."""
    is_faster = milliseconds[CUDA_GRAPH] * _MIN_SPEEDUP <= milliseconds[EAGER]
    return CUDA_GRAPH if is_faster else EAGER


def time_interleaved(
    steps: Mapping[str, Callable[[], None]],
    synchronize: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Time the steps in turns, in rounds of ten calls each.

    The host synchronizes only after ten calls: it rarely does in training, either.

    Returns:
        Milliseconds per call of each step, the median over five rounds.
    """
    for step in steps.values():
        for _ in range(3):
            step()
    times_ms: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(_ROUNDS):
        for name, step in steps.items():
            synchronize()
            started = clock()
            for _ in range(_REPEATS):
                step()
            synchronize()
            times_ms[name].append((clock() - started) / _REPEATS * 1e3)
    return {name: median(times) for name, times in times_ms.items()}


def capture_forward(
    module: nn.Module, values: Tensors, compute_config: ComputeConfig
) -> ForwardFunction:
    """Capture the forward and the backward pass of `module` on the current GPU.

    Raises:
        RuntimeError: if an operator cannot be captured, or the GPU is out of memory.
    """
    current_stream = torch.cuda.current_stream(compute_config.device)
    static = tuple(value.detach().clone() for value in values)
    options: dict[str, Any] = {"allow_unused_input": True}
    if "capture_error_mode" in inspect.signature(torch.cuda.make_graphed_callables).parameters:
        # In the mode `global`, a CUDA call of another thread, such as the one that pins the
        # loader's memory, would abort the capture.
        options["capture_error_mode"] = "thread_local"
    try:
        graphed: Any = torch.cuda.make_graphed_callables(
            _AutocastModule(module, compute_config), static, **options
        )
        return cast("ForwardFunction", graphed)
    finally:
        # A capture that fails early leaves its own stream as the current one.
        torch.cuda.set_stream(current_stream)


class _AutocastModule(nn.Module):
    # make_graphed_callables passes gradients only to parameters of a module, and it replaces the
    # module's forward: hence a wrapper.
    def __init__(self, module: nn.Module, compute_config: ComputeConfig) -> None:
        super().__init__()
        self.module = module
        self._compute_config = compute_config

    def forward(self, *values: Tensor) -> Tensor:
        # Weights must be cast within the graph: cached casts would stay those of the captured step.
        with self._compute_config.autocast(cache_enabled=False):
            logits: Tensor = self.module(*values)
        return logits


def _make_step(
    forward: ForwardFunction, values: Tensors, labels: Tensor, compute_config: ComputeConfig
) -> Callable[[], None]:
    def run() -> None:
        with compute_config.autocast():
            logits = forward(*values)
        F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]

    return run


def _to_channels_last(value: Tensor) -> Tensor:
    # Convolutions are fastest in channels-last format.
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
