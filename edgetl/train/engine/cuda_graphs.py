"""Forward and backward passes replayed as CUDA graphs, where that is measured faster than launching each kernel.

A CUDA graph launches all kernels of a pass at once, with the addresses and shapes that it was captured with. See PyTorch's
notes on CUDA graphs, "Partial-network capture".
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
"""Reason of a runner that an earlier run or process has taken."""
MIN_STEPS_FOR_CAPTURE = 200
"""Steps of a phase below which capturing and timing, about 130 steps, cost more than they can save."""
_MIN_SPEEDUP = 1.03
"""Ratio of times from which on a graph is taken: below it a timing's noise decides."""
_ROUNDS, _REPEATS = 5, 10


@dataclass(frozen=True)
class StepReport:
    """How the steps of a phase are run, for metrics.json."""

    runner: str
    """`eager` or `cuda-graph`."""
    milliseconds: dict[str, float]
    """Of a forward and backward pass, by runner; empty where nothing was timed."""
    reason: str
    """Why this runner was taken."""

    def to_json(self) -> dict[str, Any]:
        """Return its fields."""
        return {"runner": self.runner, "milliseconds": self.milliseconds, "reason": self.reason}


class GraphedForward:
    """Replays a captured pass for batches like the captured one while training, and runs any other batch eagerly."""

    def __init__(
        self, eager: ForwardFunction, graphed: ForwardFunction, sample: Tensors, network: nn.Module
    ) -> None:
        """Take a captured batch, and the network whose training flag tells training from evaluation."""
        self._eager, self._graphed, self._model = eager, graphed, network
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
    computing: ComputeConfig, processes: int, deterministic: bool, compiled: bool, steps: int
) -> str | None:
    """Say why the passes of a phase are not captured; None where capturing may be tried."""
    if computing.device.type != "cuda":
        return "not on a GPU"
    if processes > 1:
        # DistributedDataParallel reduces gradients in hooks of the backward pass, which need a capture of their own.
        return "several processes"
    if deterministic:
        # Replaying is not known to draw dropout's numbers exactly as eager steps do.
        return "--deterministic"
    if compiled:
        return "--compile"
    if steps < MIN_STEPS_FOR_CAPTURE:
        return f"fewer than {MIN_STEPS_FOR_CAPTURE} steps"
    return None


def autotune_forward(
    network: nn.Module,
    module: nn.Module,
    eager: ForwardFunction,
    batch: tuple[Tensors, Tensor],
    computing: ComputeConfig,
    facts: Mapping[str, Any],
    capture: ForwardCapture | None = None,
    recorded: str | None = None,
) -> tuple[ForwardFunction, StepReport]:
    """Capture a training step and keep the graph if it is faster than eager launches; the network is left as it was.

    Args:
        network: the whole network, with modes and trained parameters as the phase sets them.
        module: its part that is trained: values to logits.
        eager: runs that part without a graph.
        batch: a full batch of the phase: (values, int64 labels), on the device.
        facts: what the choice depends on; a choice made earlier on this machine for the same facts is taken again.
        capture: makes the graphed forward; None is `capture_forward`.
        recorded: the runner that an earlier run or process has taken: nothing is timed.

    Returns:
        What to run in training, and why. Where the capture fails, `eager`, with the error as the reason.
    """
    if recorded == EAGER:
        return eager, StepReport(EAGER, {}, RECORDED_REASON)
    values, labels = tuple(_to_channels_last(value) for value in batch[0]), batch[1]
    forwards: dict[str, ForwardFunction] = {EAGER: eager}

    def graphed() -> ForwardFunction:
        if CUDA_GRAPH not in forwards:
            forwards[CUDA_GRAPH] = (capture or capture_forward)(module, values, computing)
        return forwards[CUDA_GRAPH]

    def measure() -> dict[str, Any]:
        graphed()
        steps = {
            name: _make_step(forward, values, labels, computing)
            for name, forward in forwards.items()
        }
        return {"milliseconds": time_interleaved(steps, computing.synchronize)}

    try:
        with preserve_model_state(network), cudnn_autotuning(True):
            if recorded == CUDA_GRAPH:
                return GraphedForward(eager, graphed(), values, network), StepReport(
                    CUDA_GRAPH, {}, RECORDED_REASON
                )
            times = cached_measurement({**facts, "choice of": [EAGER, CUDA_GRAPH]}, measure)[
                "milliseconds"
            ]
            runner = choose_runner(times)
            if runner == EAGER:
                return eager, StepReport(EAGER, times, "measured")
            return GraphedForward(eager, graphed(), values, network), StepReport(
                CUDA_GRAPH, times, "measured"
            )
    except (RuntimeError, ValueError, AssertionError, TypeError) as cause:
        reason = str(cause).strip().partition("\n")[0] or type(cause).__name__
        return eager, StepReport(EAGER, {}, f"capture failed: {reason}")


def choose_runner(milliseconds: Mapping[str, float]) -> str:
    """Choose the graph where it saves more than noise explains."""
    return CUDA_GRAPH if milliseconds[CUDA_GRAPH] * _MIN_SPEEDUP <= milliseconds[EAGER] else EAGER


def time_interleaved(
    steps: Mapping[str, Callable[[], None]],
    wait: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Time each step in rounds, in turns; the host waits only at the ends of blocks of ten, as in training.

    Returns:
        The median over five rounds, milliseconds a step.
    """
    for step in steps.values():
        for _ in range(3):
            step()
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(_ROUNDS):
        for name, step in steps.items():
            wait()
            started = clock()
            for _ in range(_REPEATS):
                step()
            wait()
            taken[name].append((clock() - started) / _REPEATS * 1e3)
    return {name: median(times) for name, times in taken.items()}


def capture_forward(
    module: nn.Module, values: Tensors, computing: ComputeConfig
) -> ForwardFunction:
    """Capture the forward and the backward pass of `module` on the current GPU.

    Raises:
        RuntimeError: an operator cannot be captured, or memory is short.
    """
    current = torch.cuda.current_stream(computing.device)
    static = tuple(value.detach().clone() for value in values)
    options: dict[str, Any] = {"allow_unused_input": True}
    if "capture_error_mode" in inspect.signature(torch.cuda.make_graphed_callables).parameters:
        # In the mode `global` a call of another thread, as the loader's that pins memory, would end the capture.
        options["capture_error_mode"] = "thread_local"
    try:
        graphed: Any = torch.cuda.make_graphed_callables(
            _AutocastModule(module, computing), static, **options
        )
        return cast("ForwardFunction", graphed)
    finally:
        # A capture that fails at its begin leaves its own stream current.
        torch.cuda.set_stream(current)


class _AutocastModule(nn.Module):
    # A module, since only a module's parameters get gradients from a graph; and one of its own, since its forward is replaced.
    def __init__(self, module: nn.Module, computing: ComputeConfig) -> None:
        super().__init__()
        self.module = module
        self._compute_config = computing

    def forward(self, *values: Tensor) -> Tensor:
        # Casts of weights must be part of the graph: cached ones would be those of the captured step for ever.
        with self._compute_config.autocast(cache_enabled=False):
            logits: Tensor = self.module(*values)
        return logits


def _make_step(
    forward: ForwardFunction, values: Tensors, labels: Tensor, computing: ComputeConfig
) -> Callable[[], None]:
    def run() -> None:
        with computing.autocast():
            logits = forward(*values)
        F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]

    return run


def _to_channels_last(value: Tensor) -> Tensor:
    # Channels last, as convolutions are fastest with.
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
