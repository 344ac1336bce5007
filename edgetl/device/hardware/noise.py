"""Detect interference during a measurement from two device states and the spread of the rounds."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgetl.core.artifacts.bench import Noise
from edgetl.core.formatting import pluralize

FIRMWARE_THROTTLE_REASONS = (
    "low voltage",
    "a capped clock",
    "throttling",
    "the soft temperature limit",
)
"""Meaning of the low bits of Raspberry Pi's get_throttled, from bit 0."""
DEVICE_SETTINGS = {
    "governors": "the frequency governor",
    "frequency_limits_khz": "the limits of the clock",
    "turbo": "turbo",
    "power_mode": "the power mode",
    "power_source": "the power source",
}
"""Settings that must not change during a run: keys of `read_device_state` and their description."""
GPU_SLOWDOWN_REASONS = (
    "hw slowdown",
    "sw thermal slowdown",
    "hw thermal slowdown",
    "hw power brake slowdown",
)
"""GPU throttle reasons that make a run noisy.

Idle, chosen clocks and the power cap belong to normal work. The cap's effect shows in the clock.
"""


@dataclass(frozen=True)
class NoiseLimits:
    """Limits above which a run is noisy."""

    other_cpu_share: float = 0.05
    """Share of all cores' time used by other processes."""
    steal_share: float = 0.01
    """Share of all cores' time that the hypervisor gave to other guests."""
    cpu_pressure: float = 0.10
    """Share of the time in which some task waited for a core."""
    memory_pressure: float = 0.01
    """Share of the time in which some task waited for memory."""
    frequency_spread: float = 0.05
    """(fastest - slowest) / fastest CPU clock right after a row's blocks."""
    swap_growth_bytes: int = 2**20
    """Memory moved to swap during the run. Smaller amounts are stray pages."""
    gpu_clock_spread: float = 0.05
    """(fastest - slowest) / fastest SM clock of the GPU right after a row's slices."""
    round_spread: float = 0.10
    """(largest - smallest) / median of a row's round medians."""


def assess_noise(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    bench_cpu_s: float,
    spreads: Mapping[str, float],
    frequencies_khz: Sequence[Sequence[int]] = (),
    limits: NoiseLimits = NoiseLimits(),
    gpu_rounds: Sequence[Sequence[Mapping[str, Any]]] = (),
) -> Noise:
    """Assess the interference during a benchmark.

    Args:
        before: `read_device_state` when measuring began.
        after: `read_device_state` when it ended.
        bench_cpu_s: CPU seconds used by the benchmark in between, including its worker processes.
        spreads: each row's relative spread of round medians.
        frequencies_khz: for each row the CPU clock right after each of its blocks. Rows are not
            compared with each other, because more threads may run at a lower clock.
        limits: the limits above which a run is noisy.
        gpu_rounds: for each row measured on a GPU, the GPU readings of its rounds.

    Returns:
        The reasons, with the values behind them in `measured`. Its `disturbance` is the largest
        share of the time lost to other processes, the hypervisor, waiting for a core or the CPU
        quota; 0 if none of them is known.
    """
    metrics = _measure_interference(
        before, after, bench_cpu_s, spreads, frequencies_khz, gpu_rounds
    )
    reasons = (
        *_cpu_and_memory_reasons(metrics, limits),
        *_throttling_reasons(metrics, before, after),
        *_clock_and_gpu_reasons(metrics, limits),
        *_settings_reasons(before, after),
        *(
            f"the rounds of {row} differ by {spread:.0%}"
            for row, spread in spreads.items()
            if spread > limits.round_spread
        ),
    )
    return Noise(reasons, metrics)


def _measure_interference(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    bench_cpu_s: float,
    spreads: Mapping[str, float],
    frequencies_khz: Sequence[Sequence[int]],
    gpu_rounds: Sequence[Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
    """Return the values of `Noise.measured`; None if the device does not report them."""
    seconds = max(after["monotonic_s"] - before["monotonic_s"], 1e-9)
    other, steal = _cpu_shares(before["cpu_seconds"], after["cpu_seconds"], bench_cpu_s)
    pressure = {
        name: _delta(before["pressure_us"], after["pressure_us"], name, seconds * 1e6)
        for name in ("cpu", "memory", "io")
    }
    throttled_s = _delta(before["throttling"], after["throttling"], "seconds")
    # The kernel adds up the time of all cores' queues: as a share of the run's time it can pass 1.
    throttled_share = None if throttled_s is None else min(throttled_s / seconds, 1.0)
    shares = [
        share for share in (other, steal, pressure["cpu"], throttled_share) if share is not None
    ]
    gpu_reasons = {
        reason
        for readings in gpu_rounds
        for reading in readings
        for reason in reading["throttle_reasons"]
    }
    return {
        "seconds": seconds,
        "disturbance": max([0.0, *shares]),
        "other_cpu": other,
        "steal": steal,
        **{f"{name}_pressure": value for name, value in pressure.items()},
        "swap_growth_bytes": _delta(before, after, "swap_used_bytes"),
        "throttled_periods": _delta(before["throttling"], after["throttling"], "periods"),
        "throttled_seconds": throttled_s,
        "thermal_throttles": _total_delta(before["thermal_throttles"], after["thermal_throttles"]),
        "over_current_events": _total_delta(
            before["over_current_events"], after["over_current_events"]
        ),
        "frequency_spread": max(
            ((max(row) - min(row)) / max(row) for row in frequencies_khz if row), default=None
        ),
        "gpu_clock_spread": max((_clock_spread(readings) for readings in gpu_rounds), default=None),
        "gpu_throttle_reasons": sorted(gpu_reasons) if gpu_rounds else None,
        "gpu_other_processes": _other_gpu_processes(before, after, gpu_rounds),
        "round_spread": dict(spreads),
    }


def _cpu_and_memory_reasons(metrics: Mapping[str, Any], limits: NoiseLimits) -> Iterator[str]:
    if _exceeds(metrics["other_cpu"], limits.other_cpu_share):
        yield f"other processes used {metrics['other_cpu']:.0%} of the CPU"
    if _exceeds(metrics["steal"], limits.steal_share):
        yield f"the hypervisor took {metrics['steal']:.1%} of the CPU (steal)"
    if _exceeds(metrics["cpu_pressure"], limits.cpu_pressure):
        yield f"tasks waited for a core {metrics['cpu_pressure']:.0%} of the time"
    if _exceeds(metrics["memory_pressure"], limits.memory_pressure):
        yield f"tasks waited for memory {metrics['memory_pressure']:.0%} of the time"
    if _exceeds(metrics["swap_growth_bytes"], limits.swap_growth_bytes):
        yield f"swap grew by {metrics['swap_growth_bytes'] / 2**20:.0f} MiB"


def _throttling_reasons(
    metrics: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]
) -> Iterator[str]:
    periods = metrics["throttled_periods"]
    if _exceeds(periods, 0):
        seconds = metrics["throttled_seconds"] or 0
        yield f"the CPU quota throttled {periods:.0f} periods ({seconds:.1f} s)"
    if _exceeds(metrics["thermal_throttles"], 0):
        yield f"the processor throttled itself {metrics['thermal_throttles']:.0f} times (heat)"
    events = metrics["over_current_events"]
    if _exceeds(events, 0):
        yield f"the board throttled itself {events:.0f} times (over-current or low voltage)"
    firmware = _firmware_throttle_text(before["firmware_throttled"], after["firmware_throttled"])
    if firmware:
        yield f"the firmware reports {firmware}"


def _clock_and_gpu_reasons(metrics: Mapping[str, Any], limits: NoiseLimits) -> Iterator[str]:
    if _exceeds(metrics["frequency_spread"], limits.frequency_spread):
        yield f"the clock varied by {metrics['frequency_spread']:.0%} between rounds"
    throttle_reasons = metrics["gpu_throttle_reasons"] or ()
    slowdowns = [reason for reason in throttle_reasons if reason in GPU_SLOWDOWN_REASONS]
    if slowdowns:
        yield f"the GPU was throttled ({', '.join(slowdowns)})"
    if _exceeds(metrics["gpu_clock_spread"], limits.gpu_clock_spread):
        yield f"the GPU's clock varied by {metrics['gpu_clock_spread']:.0%} within a row"
    if pids := metrics["gpu_other_processes"]:
        yield f"{pluralize(len(pids), 'other process', 'other processes')} used the GPU"


def _settings_reasons(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    for name, description in DEVICE_SETTINGS.items():
        if before[name] != after[name]:
            yield f"{description} changed during the run"
    if "battery" in (before["power_source"], after["power_source"]):
        yield "it ran on battery"


def _clock_spread(readings: Sequence[Mapping[str, Any]]) -> float:
    """Return (fastest - slowest) / fastest SM clock over a row's rounds; 0 if unknown."""
    clocks = [clock for reading in readings for clock in reading["sm_clocks_mhz"]]
    return (max(clocks) - min(clocks)) / max(clocks) if clocks and max(clocks) else 0.0


def _other_gpu_processes(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    gpu_rounds: Sequence[Sequence[Mapping[str, Any]]],
) -> list[int] | None:
    """Return the ids of other processes on the measured GPUs; None if unknown.

    No worker of the benchmark is alive when the two states are read. In a container NVML may hide
    processes outside it.
    """
    indices = {str(reading["index"]) for readings in gpu_rounds for reading in readings}
    states = [
        (state.get("gpus") or {}).get(index) for state in (before, after) for index in indices
    ]
    pid_lists = [
        state["compute_processes"]
        for state in states
        if state and state["compute_processes"] is not None
    ]
    if not pid_lists:
        return None
    return sorted({pid for pids in pid_lists for pid in pids} - {os.getpid()})


def _exceeds(value: float | None, limit: float) -> bool:
    return value is not None and value > limit


def _delta(
    before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, name: str, per: float = 1.0
) -> float | None:
    if before is None or after is None or before[name] is None or after[name] is None:
        return None
    return float(after[name] - before[name]) / per


def _total_delta(before: Mapping[str, int] | None, after: Mapping[str, int] | None) -> int | None:
    """Return the events on all counters that are present in both states."""
    if before is None or after is None:
        return None
    return sum(after[name] - before[name] for name in before.keys() & after.keys())


def _cpu_shares(
    before: Mapping[str, float] | None, after: Mapping[str, float] | None, bench_cpu_s: float
) -> tuple[float | None, float | None]:
    """Return the shares of all cores' time used by other processes and by the hypervisor."""
    total = _delta(before, after, "total")
    if not total or total < 0:
        return None, None
    busy = _delta(before, after, "busy") or 0.0
    steal = _delta(before, after, "steal") or 0.0
    return max(0.0, busy - bench_cpu_s) / total, max(0.0, steal) / total


def _firmware_throttle_text(before: str | None, after: str | None) -> str:
    """Return the throttle reasons of Raspberry Pi's get_throttled that apply to the run.

    The low four bits describe the present, bits 16 to 19 any time since boot (documentation of
    vcgencmd).
    """
    start, end = (int(digits, 16) if digits else 0 for digits in (before, after))
    # Without a first reading it is unknown when a bit of the past was set.
    new_past_bits = (end & ~start) >> 16 if before else 0
    bits = start | end | new_past_bits
    return ", ".join(name for bit, name in enumerate(FIRMWARE_THROTTLE_REASONS) if bits >> bit & 1)
