"""Summary of a PyTorch profile by operator, in GPU time if a GPU is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.autograd.profiler_util import FunctionEventAvg

from edgetl.core.artifacts.session import OperatorProfile, ProfiledOperator

ATTRIBUTED_SHARE = 0.95
"""Smallest share of the kernels' time to report by operator.

The profiler attributes less to operators if a CUDA graph is replayed.
"""


def operator_profile(
    events: Sequence[FunctionEventAvg], runs: int, provider: str
) -> OperatorProfile:
    """Summarize a profile by operator, slowest first.

    If the events include GPU kernels, times are GPU times: per operator, or per kernel if the
    profiler cannot attribute kernels to operators. Otherwise they are CPU times of the host. All
    are self times, without the operators called.

    Args:
        events: `key_averages()` of torch.profiler.
        runs: number of profiled runs.
        provider: execution provider to record.
    """
    kernels = [
        event
        for event in events
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    gpu_time = sum(event.self_device_time_total for event in kernels)
    if not gpu_time:
        host_times = [(event, event.self_cpu_time_total) for event in events]
        return _summary("host", "operators", host_times, runs, provider)
    operator_times = [
        (event, event.self_device_time_total)
        for event in events
        if event.device_type == DeviceType.CPU
    ]
    if sum(time for _, time in operator_times) >= ATTRIBUTED_SHARE * gpu_time:
        return _summary(
            "gpu",
            "operators",
            [(event, time) for event, time in operator_times if time],
            runs,
            provider,
        )
    return _summary(
        "gpu",
        "kernels",
        [(event, event.self_device_time_total) for event in kernels],
        runs,
        provider,
    )


def _summary(
    clock: Literal["gpu", "host"],
    rows: Literal["operators", "kernels"],
    times: Sequence[tuple[FunctionEventAvg, float]],
    runs: int,
    provider: str,
) -> OperatorProfile:
    total = sum(time for _, time in times) or 1.0
    operators = [
        ProfiledOperator(str(event.key), provider, event.count // runs, time / runs, time / total)
        for event, time in sorted(times, key=lambda entry: -entry[1])
    ]
    return OperatorProfile(runs, tuple(operators), (), clock, rows)
