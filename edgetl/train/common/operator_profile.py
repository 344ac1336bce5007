"""PyTorch's profile by operator, in the time of the processor that does the work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.autograd.profiler_util import FunctionEventAvg

ATTRIBUTED_SHARE = 0.95
"""From this share of the kernels' time on, operators stand for it. Less is attributed where a CUDA graph is replayed."""


def operator_profile(
    events: Sequence[FunctionEventAvg], runs: int, provider: str
) -> dict[str, Any]:
    """Sum up a profile by operator, the costliest first.

    With a GPU's kernels among the events, times are the GPU's: of each operator, or of each kernel
    where the profiler can't say which operator launched it. Otherwise they are the CPU time of the
    host. A time is the operator's own, without those it calls.

    Args:
        events: `key_averages()` of torch.profiler.
        runs: how many runs were profiled.
        provider: where they ran.

    Returns:
        {"runs", "clock": "gpu" or "host", "rows": "operators" or "kernels", "operators", "nodes"}; microseconds are those of one run.
    """
    kernels = [
        event
        for event in events
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    on_gpu = sum(event.self_device_time_total for event in kernels)
    if not on_gpu:
        hosted = [(event, event.self_cpu_time_total) for event in events]
        return _summary("host", "operators", hosted, runs, provider)
    launched = [
        (event, event.self_device_time_total)
        for event in events
        if event.device_type == DeviceType.CPU
    ]
    if sum(time for _, time in launched) >= ATTRIBUTED_SHARE * on_gpu:
        return _summary(
            "gpu", "operators", [(event, time) for event, time in launched if time], runs, provider
        )
    return _summary(
        "gpu",
        "kernels",
        [(event, event.self_device_time_total) for event in kernels],
        runs,
        provider,
    )


def _summary(
    clock: str, rows: str, times: Sequence[tuple[FunctionEventAvg, float]], runs: int, provider: str
) -> dict[str, Any]:
    total = sum(time for _, time in times) or 1.0
    operators = [
        {
            "operator": event.key,
            "provider": provider,
            "nodes": event.count // runs,
            "us": time / runs,
            "share": time / total,
        }
        for event, time in sorted(times, key=lambda entry: -entry[1])
    ]
    return {"runs": runs, "clock": clock, "rows": rows, "operators": operators, "nodes": []}
