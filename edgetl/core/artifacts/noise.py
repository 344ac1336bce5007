"""Interference by other load during a measurement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from edgetl.core.typed_json import computed


@dataclass(frozen=True)
class Interference:
    """Values behind a noise verdict; None for those that the device does not report.

    Shares are of the time of all cores, pressures of the time of the measurement.
    """

    seconds: float | None = None
    """Duration of the measurement."""
    disturbance: float | None = None
    """Largest share of the time lost to other processes, the hypervisor, waiting for a core or the
    CPU quota."""
    other_cpu: float | None = None
    """Share used by other processes."""
    steal: float | None = None
    """Share that the hypervisor gave to other guests."""
    cpu_pressure: float | None = None
    memory_pressure: float | None = None
    io_pressure: float | None = None
    swap_growth_bytes: float | None = None
    throttled_periods: float | None = None
    """Periods throttled by the CPU quota."""
    throttled_seconds: float | None = None
    thermal_throttles: int | None = None
    over_current_events: int | None = None
    frequency_spread: float | None = None
    """(fastest - slowest) / fastest CPU clock of the row that varied most."""
    gpu_clock_spread: float | None = None
    """(fastest - slowest) / fastest SM clock of the row that varied most."""
    gpu_throttle_reasons: tuple[str, ...] | None = None
    gpu_other_processes: tuple[int, ...] | None = None
    """Ids of other processes on the measured GPUs."""
    round_spread: Mapping[str, float] = field(default_factory=dict)
    """(largest - smallest) / median of the rounds' medians, by row."""


@dataclass(frozen=True)
class NoiseReport:
    """Signs of interference during a measurement."""

    reasons: tuple[str, ...]
    """Signs, for people; empty if the device was quiet."""
    measured: Interference = Interference()

    @property
    def is_noisy(self) -> bool:
        """Whether there are signs of interference."""
        return bool(self.reasons)

    @computed
    def verdict(self) -> Literal["noisy", "quiet"]:
        """Whether the device was quiet."""
        return "noisy" if self.is_noisy else "quiet"

    @property
    def disturbance(self) -> float:
        """Largest share of CPU time taken by something else; 0 if the device does not report it."""
        measured = self.measured
        if measured.disturbance is not None:
            return measured.disturbance
        # Results of older versions lack the total and have only its parts.
        return max(measured.other_cpu or 0.0, measured.steal or 0.0, measured.cpu_pressure or 0.0)
