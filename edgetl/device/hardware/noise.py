"""Was the device left alone while it was measured? Two readings of its state, and how much the rounds agree."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
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
"""Raspberry Pi's get_throttled, from the lowest bit."""
DEVICE_SETTINGS = {
    "governors": "the frequency governor",
    "frequency_limits_khz": "the limits of the clock",
    "turbo": "turbo",
    "power_mode": "the power mode",
    "power_source": "the power source",
}
"""What stays as it is while nobody touches it: keys of `device_state`, in words."""
GPU_SLOWDOWN_REASONS = (
    "hw slowdown",
    "sw thermal slowdown",
    "hw thermal slowdown",
    "hw power brake slowdown",
)
"""Throttle reasons of a GPU that mean trouble. Idle, chosen clocks and the power cap belong to normal work; what the cap does
to the clock is seen in the clock."""


@dataclass(frozen=True)
class NoiseLimits:
    """Above these a run is called noisy."""

    other_cpu_share: float = 0.05
    """Share of all cores' time used by other processes."""
    steal_share: float = 0.01
    """Share of all cores' time that the hypervisor gave to others."""
    cpu_pressure: float = 0.10
    """Share of the time in which some task waited for a core."""
    memory_pressure: float = 0.01
    """Share of the time in which some task waited for memory."""
    frequency_spread: float = 0.05
    """(fastest - slowest) / fastest clock seen right after the blocks."""
    swap_growth_bytes: int = 2**20
    """Memory that was moved to the disk meanwhile; less is a stray page."""
    gpu_clock_spread: float = 0.05
    """(fastest - slowest) / fastest SM clock of the GPU seen right after a row's slices."""
    round_spread: float = 0.10
    """(largest - smallest) / median of a row's round medians."""


def assess_noise(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    own_cpu_s: float,
    spreads: Mapping[str, float],
    frequencies_khz: Sequence[Sequence[int]] = (),
    limits: NoiseLimits = NoiseLimits(),
    gpu_rounds: Sequence[Sequence[Mapping[str, Any]]] = (),
) -> Noise:
    """The verdict on a run.

    Args:
        before: `device_state` when measuring began.
        after: `device_state` when it ended.
        own_cpu_s: CPU seconds that this benchmark itself used in between, its worker processes included.
        spreads: each row's relative spread of round medians.
        frequencies_khz: for each row the clock right after each of its blocks; rows are not held against each other, because more
            threads may well run at a lower clock.
        limits: what is still quiet.
        gpu_rounds: for each row measured on a GPU its rounds' readings (`GpuWatch.summary`).

    Returns:
        The reasons, and in `measured` the figures behind them. Its `disturbance` is the largest share of the time that
        something else took (other processes, the hypervisor, waiting for a core, the quota); 0 where none can be told.
    """
    seconds = max(after["monotonic_s"] - before["monotonic_s"], 1e-9)
    other, steal = _cpu_shares(before["cpu_seconds"], after["cpu_seconds"], own_cpu_s)
    pressure = {
        name: _delta(before["pressure_us"], after["pressure_us"], name, seconds * 1e6)
        for name in ("cpu", "memory", "io")
    }
    swapped = _delta(before, after, "swap_used_bytes")
    periods = _delta(before["throttling"], after["throttling"], "periods")
    throttled_s = _delta(before["throttling"], after["throttling"], "seconds")
    thermal = _total_delta(before["thermal_throttles"], after["thermal_throttles"])
    currents = _total_delta(before["over_current_events"], after["over_current_events"])
    clock = max(((max(row) - min(row)) / max(row) for row in frequencies_khz if row), default=None)
    gpu_clock = max((_clock_spread(readings) for readings in gpu_rounds), default=None)
    gpu_reasons = sorted(
        {
            reason
            for readings in gpu_rounds
            for reading in readings
            for reason in reading["throttle_reasons"]
        }
    )
    slowdowns = [reason for reason in gpu_reasons if reason in GPU_SLOWDOWN_REASONS]
    intruders = _other_gpu_processes(before, after, gpu_rounds)
    firmware = _firmware_throttle_text(before["firmware_throttled"], after["firmware_throttled"])
    # The kernel adds up the time of all cores' queues: as a share of the run's time it can pass 1.
    throttled = None if throttled_s is None else min(throttled_s / seconds, 1.0)

    reasons = [
        f"other processes used {other:.0%} of the CPU"
        if _exceeds(other, limits.other_cpu_share)
        else None,
        f"the hypervisor took {steal:.1%} of the CPU (steal)"
        if _exceeds(steal, limits.steal_share)
        else None,
        f"tasks waited for a core {pressure['cpu']:.0%} of the time"
        if _exceeds(pressure["cpu"], limits.cpu_pressure)
        else None,
        f"tasks waited for memory {pressure['memory']:.0%} of the time"
        if _exceeds(pressure["memory"], limits.memory_pressure)
        else None,
        f"swap grew by {(swapped or 0) / 2**20:.0f} MiB"
        if _exceeds(swapped, limits.swap_growth_bytes)
        else None,
        f"the CPU quota throttled {periods:.0f} periods ({throttled_s or 0:.1f} s)"
        if _exceeds(periods, 0)
        else None,
        f"the processor throttled itself {thermal:.0f} times (heat)"
        if _exceeds(thermal, 0)
        else None,
        f"the board throttled itself {currents:.0f} times (over-current or low voltage)"
        if _exceeds(currents, 0)
        else None,
        f"the firmware reports {firmware}" if firmware else None,
        f"the clock varied by {clock:.0%} between rounds"
        if _exceeds(clock, limits.frequency_spread)
        else None,
        f"the GPU was throttled ({', '.join(slowdowns)})" if slowdowns else None,
        f"the GPU's clock varied by {gpu_clock:.0%} within a row"
        if _exceeds(gpu_clock, limits.gpu_clock_spread)
        else None,
        f"{pluralize(len(intruders), 'other process', 'other processes')} used the GPU"
        if intruders
        else None,
        *(
            f"{what} changed during the run"
            for name, what in DEVICE_SETTINGS.items()
            if before[name] != after[name]
        ),
        "it ran on battery"
        if "battery" in (before["power_source"], after["power_source"])
        else None,
        *(
            f"the rounds of {row} differ by {spread:.0%}"
            for row, spread in spreads.items()
            if spread > limits.round_spread
        ),
    ]
    measured = {
        "seconds": seconds,
        "disturbance": max(
            [
                0.0,
                *(
                    share
                    for share in (other, steal, pressure["cpu"], throttled)
                    if share is not None
                ),
            ]
        ),
        "other_cpu": other,
        "steal": steal,
        **{f"{name}_pressure": value for name, value in pressure.items()},
        "swap_growth_bytes": swapped,
        "throttled_periods": periods,
        "throttled_seconds": throttled_s,
        "thermal_throttles": thermal,
        "over_current_events": currents,
        "frequency_spread": clock,
        "gpu_clock_spread": gpu_clock,
        "gpu_throttle_reasons": gpu_reasons if gpu_rounds else None,
        "gpu_other_processes": intruders,
        "round_spread": dict(spreads),
    }
    return Noise(tuple(reason for reason in reasons if reason), measured)


def _clock_spread(readings: Sequence[Mapping[str, Any]]) -> float:
    """Return (fastest - slowest) / fastest SM clock over a row's rounds; 0 where it isn't known."""
    clocks = [clock for reading in readings for clock in reading["sm_clocks_mhz"]]
    return (max(clocks) - min(clocks)) / max(clocks) if clocks and max(clocks) else 0.0


def _other_gpu_processes(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    gpu_rounds: Sequence[Sequence[Mapping[str, Any]]],
) -> list[int] | None:
    """Return the process ids of others on the GPUs that were measured; None where they aren't known.

    Both states are read while no worker of the benchmark lives. Within a container NVML may hide
    the processes outside of it.
    """
    indices = {str(reading["index"]) for readings in gpu_rounds for reading in readings}
    states = [
        (state.get("gpus") or {}).get(index) for state in (before, after) for index in indices
    ]
    lists = [
        state["compute_processes"]
        for state in states
        if state and state["compute_processes"] is not None
    ]
    return sorted({pid for pids in lists for pid in pids} - {os.getpid()}) if lists else None


def _exceeds(value: float | None, limit: float) -> bool:
    return value is not None and value > limit


def _delta(
    before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, name: str, per: float = 1.0
) -> float | None:
    if before is None or after is None or before[name] is None or after[name] is None:
        return None
    return float(after[name] - before[name]) / per


def _total_delta(before: Mapping[str, int] | None, after: Mapping[str, int] | None) -> int | None:
    """How many events all counters together saw; one that was not there at both times is left out."""
    if before is None or after is None:
        return None
    return sum(after[name] - before[name] for name in before.keys() & after.keys())


def _cpu_shares(
    before: Mapping[str, float] | None, after: Mapping[str, float] | None, own_cpu_s: float
) -> tuple[float | None, float | None]:
    total = _delta(before, after, "total")
    if not total or total < 0:
        return None, None
    busy, steal = _delta(before, after, "busy") or 0.0, _delta(before, after, "steal") or 0.0
    return max(0.0, busy - own_cpu_s) / total, max(0.0, steal) / total


def _firmware_throttle_text(before: str | None, after: str | None) -> str:
    """What Raspberry Pi's get_throttled tells about the run; nothing where it tells only of earlier times.

    The low four bits say what holds now, bits 16 to 19 what held at some time since boot (documentation of vcgencmd).
    """
    start, end = (int(word, 16) if word else 0 for word in (before, after))
    # Without a first reading nobody knows when a bit of the past was set.
    appeared = (end & ~start) >> 16 if before else 0
    held = start | end | appeared
    return ", ".join(name for bit, name in enumerate(FIRMWARE_THROTTLE_REASONS) if held >> bit & 1)
