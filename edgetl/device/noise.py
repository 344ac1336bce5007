"""Was the device left alone while it was measured? Two readings of its state, and how much the rounds agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgetl.core.results import Noise


@dataclass(frozen=True)
class NoiseLimits:
    """Above these a run is called noisy."""

    other_cpu: float = 0.05
    """Share of all cores' time used by other processes."""
    steal: float = 0.01
    """Share of all cores' time that the hypervisor gave to others."""
    cpu_pressure: float = 0.10
    """Share of the time in which some task waited for a core."""
    memory_pressure: float = 0.01
    """Share of the time in which some task waited for memory."""
    frequency: float = 0.05
    """(fastest - slowest) / fastest clock seen right after the blocks."""
    spread: float = 0.10
    """(largest - smallest) / median of a row's round medians."""


def judge(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    own_cpu_s: float,
    spreads: Mapping[str, float],
    frequencies_khz: Sequence[int] = (),
    limits: NoiseLimits = NoiseLimits(),
) -> Noise:
    """The verdict on a run.

    Args:
        before: `device_state` when measuring began.
        after: `device_state` when it ended.
        own_cpu_s: CPU seconds that this benchmark itself used in between, its worker processes included.
        spreads: each row's relative spread of round medians.
        frequencies_khz: the clock right after each block.
    """
    seconds = max(after["monotonic_s"] - before["monotonic_s"], 1e-9)
    other, steal = _cpu_shares(before["cpu_seconds"], after["cpu_seconds"], own_cpu_s)
    pressure = {name: _delta(before["pressure_us"], after["pressure_us"], name, seconds * 1e6) for name in ("cpu", "memory", "io")}
    periods = _delta(before["throttling"], after["throttling"], "periods")
    throttled_s = _delta(before["throttling"], after["throttling"], "seconds")
    thermal = _delta(before, after, "thermal_throttles")
    clock = (max(frequencies_khz) - min(frequencies_khz)) / max(frequencies_khz) if frequencies_khz else None
    firmware = after["firmware_throttled"]

    reasons = [
        f"other processes used {other:.0%} of the CPU" if _above(other, limits.other_cpu) else None,
        f"the hypervisor took {steal:.1%} of the CPU (steal)" if _above(steal, limits.steal) else None,
        f"tasks waited for a core {pressure['cpu']:.0%} of the time" if _above(pressure["cpu"], limits.cpu_pressure) else None,
        f"tasks waited for memory {pressure['memory']:.0%} of the time" if _above(pressure["memory"], limits.memory_pressure) else None,
        f"the CPU quota throttled {periods:.0f} periods ({throttled_s or 0:.1f} s)" if _above(periods, 0) else None,
        f"the processor throttled itself {thermal:.0f} times (heat)" if _above(thermal, 0) else None,
        f"the firmware reports throttling or low voltage ({firmware})" if _firmware_throttles(firmware) else None,
        f"the clock varied by {clock:.0%} between rounds" if _above(clock, limits.frequency) else None,
        "the frequency governor was changed during the run" if before["governors"] != after["governors"] else None,
        *(f"the rounds of {row} differ by {spread:.0%}" for row, spread in spreads.items() if spread > limits.spread),
    ]
    measured = {
        "seconds": seconds,
        "other_cpu": other,
        "steal": steal,
        **{f"{name}_pressure": value for name, value in pressure.items()},
        "throttled_periods": periods,
        "throttled_seconds": throttled_s,
        "thermal_throttles": thermal,
        "frequency_spread": clock,
        "round_spread": dict(spreads),
    }
    return Noise(tuple(reason for reason in reasons if reason), measured)


def _above(value: float | None, limit: float) -> bool:
    return value is not None and value > limit


def _delta(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, name: str, per: float = 1.0) -> float | None:
    if before is None or after is None or before[name] is None or after[name] is None:
        return None
    return float(after[name] - before[name]) / per


def _cpu_shares(
    before: Mapping[str, float] | None, after: Mapping[str, float] | None, own_cpu_s: float
) -> tuple[float | None, float | None]:
    total = _delta(before, after, "total")
    if not total:
        return None, None
    busy, steal = _delta(before, after, "busy") or 0.0, _delta(before, after, "steal") or 0.0
    return max(0.0, busy - own_cpu_s) / total, steal / total


def _firmware_throttles(word: str | None) -> bool:
    """Raspberry Pi's get_throttled: the low four bits say what holds now, bits 16 to 19 what held at some time since boot."""
    try:
        return bool(int(word, 16) & 0xF) if word else False
    except ValueError:
        return False
