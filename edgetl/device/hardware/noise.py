"""Detect interference during a measurement from two device states and the spread of the rounds."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from edgetl.core.artifacts.bench_rows import GpuReading, largest
from edgetl.core.artifacts.device import CpuTime, DeviceState
from edgetl.core.artifacts.noise import Interference, NoiseReport
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
"""Settings that must not change during a run: fields of `DeviceState` and their description."""
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
    before: DeviceState,
    after: DeviceState,
    bench_cpu_s: float,
    spreads: Mapping[str, float],
    frequencies_khz: Sequence[Sequence[int]] = (),
    limits: NoiseLimits = NoiseLimits(),
    gpu_rounds: Sequence[Sequence[GpuReading]] = (),
) -> NoiseReport:
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
        The reasons, with the values behind them in `measured`. Its `disturbance` is 0 if none of
        its parts is known.
    """
    measured = _measure_interference(
        before, after, bench_cpu_s, spreads, frequencies_khz, gpu_rounds
    )
    reasons = (
        *_cpu_and_memory_reasons(measured, limits),
        *_throttling_reasons(measured, before, after),
        *_clock_and_gpu_reasons(measured, limits),
        *_settings_reasons(before, after),
        *(
            f"the rounds of {row} differ by {spread:.0%}"
            for row, spread in spreads.items()
            if spread > limits.round_spread
        ),
    )
    return NoiseReport(reasons, measured)


def _measure_interference(
    before: DeviceState,
    after: DeviceState,
    bench_cpu_s: float,
    spreads: Mapping[str, float],
    frequencies_khz: Sequence[Sequence[int]],
    gpu_rounds: Sequence[Sequence[GpuReading]],
) -> Interference:
    seconds = max(after.monotonic_s - before.monotonic_s, 1e-9)
    other, steal = _cpu_shares(before.cpu_seconds, after.cpu_seconds, bench_cpu_s)
    stalls_us = (
        (before.pressure_us.cpu, after.pressure_us.cpu),
        (before.pressure_us.memory, after.pressure_us.memory),
        (before.pressure_us.io, after.pressure_us.io),
    )
    cpu_pressure, memory_pressure, io_pressure = (
        None if start is None or end is None else (end - start) / (seconds * 1e6)
        for start, end in stalls_us
    )
    swap_growth_bytes = throttled_periods = throttled_s = None
    if before.swap_used_bytes is not None and after.swap_used_bytes is not None:
        swap_growth_bytes = float(after.swap_used_bytes - before.swap_used_bytes)
    if before.throttling is not None and after.throttling is not None:
        throttled_periods = float(after.throttling.periods - before.throttling.periods)
        throttled_s = after.throttling.seconds - before.throttling.seconds
    # The kernel adds up the time of all cores' queues: as a share of the run's time it can pass 1.
    throttled_share = None if throttled_s is None else min(throttled_s / seconds, 1.0)
    shares = (other, steal, cpu_pressure, throttled_share)
    gpu_reasons = {
        reason
        for readings in gpu_rounds
        for reading in readings
        for reason in reading.throttle_reasons
    }
    return Interference(
        seconds=seconds,
        disturbance=max(0.0, largest(shares) or 0.0),
        other_cpu=other,
        steal=steal,
        cpu_pressure=cpu_pressure,
        memory_pressure=memory_pressure,
        io_pressure=io_pressure,
        swap_growth_bytes=swap_growth_bytes,
        throttled_periods=throttled_periods,
        throttled_seconds=throttled_s,
        thermal_throttles=_count_events(before.thermal_throttles, after.thermal_throttles),
        over_current_events=_count_events(before.over_current_events, after.over_current_events),
        frequency_spread=max(
            ((max(row) - min(row)) / max(row) for row in frequencies_khz if row), default=None
        ),
        gpu_clock_spread=max((_clock_spread(readings) for readings in gpu_rounds), default=None),
        gpu_throttle_reasons=tuple(sorted(gpu_reasons)) if gpu_rounds else None,
        gpu_other_processes=_other_gpu_processes(before, after, gpu_rounds),
        round_spread=dict(spreads),
    )


def _cpu_and_memory_reasons(measured: Interference, limits: NoiseLimits) -> Iterator[str]:
    if _exceeds(measured.other_cpu, limits.other_cpu_share):
        yield f"other processes used {measured.other_cpu:.0%} of the CPU"
    if _exceeds(measured.steal, limits.steal_share):
        yield f"the hypervisor took {measured.steal:.1%} of the CPU (steal)"
    if _exceeds(measured.cpu_pressure, limits.cpu_pressure):
        yield f"tasks waited for a core {measured.cpu_pressure:.0%} of the time"
    if _exceeds(measured.memory_pressure, limits.memory_pressure):
        yield f"tasks waited for memory {measured.memory_pressure:.0%} of the time"
    if _exceeds(measured.swap_growth_bytes, limits.swap_growth_bytes):
        yield f"swap grew by {measured.swap_growth_bytes / 2**20:.0f} MiB"


def _throttling_reasons(
    measured: Interference, before: DeviceState, after: DeviceState
) -> Iterator[str]:
    if _exceeds(measured.throttled_periods, 0):
        seconds = measured.throttled_seconds or 0
        yield f"the CPU quota throttled {measured.throttled_periods:.0f} periods ({seconds:.1f} s)"
    if _exceeds(measured.thermal_throttles, 0):
        yield f"the processor throttled itself {measured.thermal_throttles} times (heat)"
    events = measured.over_current_events
    if _exceeds(events, 0):
        yield f"the board throttled itself {events} times (over-current or low voltage)"
    firmware = _firmware_throttle_text(before.firmware_throttled, after.firmware_throttled)
    if firmware:
        yield f"the firmware reports {firmware}"


def _clock_and_gpu_reasons(measured: Interference, limits: NoiseLimits) -> Iterator[str]:
    if _exceeds(measured.frequency_spread, limits.frequency_spread):
        yield f"the clock varied by {measured.frequency_spread:.0%} between rounds"
    throttle_reasons = measured.gpu_throttle_reasons or ()
    slowdowns = [reason for reason in throttle_reasons if reason in GPU_SLOWDOWN_REASONS]
    if slowdowns:
        yield f"the GPU was throttled ({', '.join(slowdowns)})"
    if _exceeds(measured.gpu_clock_spread, limits.gpu_clock_spread):
        yield f"the GPU's clock varied by {measured.gpu_clock_spread:.0%} within a row"
    if pids := measured.gpu_other_processes:
        yield f"{pluralize(len(pids), 'other process', 'other processes')} used the GPU"


def _settings_reasons(before: DeviceState, after: DeviceState) -> Iterator[str]:
    for name, description in DEVICE_SETTINGS.items():
        if getattr(before, name) != getattr(after, name):
            yield f"{description} changed during the run"
    if "battery" in (before.power_source, after.power_source):
        yield "it ran on battery"


def _clock_spread(readings: Sequence[GpuReading]) -> float:
    """Return (fastest - slowest) / fastest SM clock over a row's rounds; 0 if unknown."""
    clocks = [clock for reading in readings for clock in reading.sm_clocks_mhz]
    fastest = max(clocks, default=0)
    return (fastest - min(clocks)) / fastest if fastest else 0.0


def _other_gpu_processes(
    before: DeviceState, after: DeviceState, gpu_rounds: Sequence[Sequence[GpuReading]]
) -> tuple[int, ...] | None:
    """Return the ids of other processes on the measured GPUs; None if unknown.

    No worker of the benchmark is alive when the two states are read. In a container NVML may hide
    processes outside it.
    """
    indices = {str(reading.index) for readings in gpu_rounds for reading in readings}
    states = [(state.gpus or {}).get(index) for state in (before, after) for index in indices]
    pid_lists = [
        state.compute_processes
        for state in states
        if state is not None and state.compute_processes is not None
    ]
    if not pid_lists:
        return None
    return tuple(sorted({pid for pids in pid_lists for pid in pids} - {os.getpid()}))


def _exceeds(value: float | None, limit: float) -> TypeGuard[float]:
    """Return whether a value is known and above a limit."""
    return value is not None and value > limit


def _count_events(before: Mapping[str, int] | None, after: Mapping[str, int] | None) -> int | None:
    """Return the events on all counters that are present in both states."""
    if before is None or after is None:
        return None
    return sum(after[name] - before[name] for name in before.keys() & after.keys())


def _cpu_shares(
    before: CpuTime | None, after: CpuTime | None, bench_cpu_s: float
) -> tuple[float | None, float | None]:
    """Return the shares of all cores' time used by other processes and by the hypervisor."""
    if before is None or after is None or after.total <= before.total:
        return None, None
    total = after.total - before.total
    busy = after.busy - before.busy
    return max(0.0, busy - bench_cpu_s) / total, max(0.0, after.steal - before.steal) / total


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
