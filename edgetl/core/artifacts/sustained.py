"""Results of a sustained measurement: latency over minutes without a pause, and its drift."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Literal

from edgetl.core.formatting import pluralize
from edgetl.core.statistics import percentile
from edgetl.core.typed_json import FieldError, computed, computed_as

DRIFT_THRESHOLD = 0.02
"""Smallest change of p50 from the first to the last quarter that is reported as drift."""


@dataclass(frozen=True)
class LatencyWindow:
    """Latencies and device state over about one second."""

    start_s: float
    """Seconds since the start of the measurement."""
    latencies_ns: tuple[int, ...]
    frequency_khz: int | None = None
    temperature_c: float | None = None
    throttles: int | None = None
    """Number of thermal throttle events of the CPU since boot."""
    memory_bytes: int | None = None
    """Resident memory of the process."""

    def __post_init__(self) -> None:
        if not self.latencies_ns or min(self.latencies_ns) <= 0:
            raise FieldError("a window must have latencies, all above 0")

    @cached_property
    def median_ns(self) -> float:
        """Median latency of the window."""
        return median(self.latencies_ns)


@dataclass(frozen=True)
class Drift:
    """p50 of the last quarter over p50 of the first, with a 95% interval."""

    ratio: float
    low: float
    high: float

    @computed
    def verdict(self) -> Literal["steady", "slower over time", "faster over time"]:
        """Steady unless the interval excludes 1 and the change reaches `DRIFT_THRESHOLD`."""
        if self.low <= 1 <= self.high or abs(self.ratio - 1) < DRIFT_THRESHOLD:
            return "steady"
        return "slower over time" if self.ratio > 1 else "faster over time"


@dataclass(frozen=True)
class SustainedResult:
    """Sustained measurement of one configuration."""

    row: str
    """Id of the row with the same configuration."""
    asked_s: float
    windows: tuple[LatencyWindow, ...]

    def __post_init__(self) -> None:
        if not self.windows:
            raise FieldError("a sustained measurement must have windows")

    @cached_property
    def settled_index(self) -> int | None:
        """Index of the first window of the steady state; None if it was never reached.

        MSER (White, 1997): windows at the start are truncated so that the standard error of the
        mean of the rest is smallest. If that is half of them or more, there is no steady state.
        """
        medians = [window.median_ns for window in self.windows]
        if len(medians) < 4:
            return 0
        cut = _find_mser_cut(medians)
        return None if cut == len(medians) // 2 else cut

    def steady_percentile_ms(self, percent: int) -> float | None:
        """Return a percentile of the steady state, or of all windows if there is none.

        None if there are too few latencies for the percentile.
        """
        steady_windows = self.windows[self.settled_index or 0 :]
        latencies = [latency for window in steady_windows for latency in window.latencies_ns]
        value = percentile(latencies, percent)
        return None if value is None else value / 1e6

    @cached_property
    def drift(self) -> Drift | None:
        """Drift from the first to the last quarter; None for fewer than eight windows.

        The interval is from a moving-block bootstrap over windows (Künsch, 1989), because adjacent
        windows are correlated; the block length is the cube root of the number of windows.
        """
        quarter = len(self.windows) // 4
        if quarter < 2:
            return None
        first = [window.median_ns for window in self.windows[:quarter]]
        last = [window.median_ns for window in self.windows[-quarter:]]
        generator = random.Random(0)
        ratios = sorted(
            median(_resample_blocks(last, generator)) / median(_resample_blocks(first, generator))
            for _ in range(2000)
        )
        ratio = median(last) / median(first)
        return Drift(ratio, min(ratio, ratios[49]), max(ratio, ratios[1949]))

    @computed_as("reasons")
    def processor_events(self) -> list[str]:
        """Descriptions of throttling, lower clocks and higher temperatures of the CPU."""
        events = []
        throttles = [window.throttles for window in self.windows if window.throttles is not None]
        if throttles and throttles[-1] > throttles[0]:
            count = throttles[-1] - throttles[0]
            events.append(f"the CPU throttled {pluralize(count, 'time')}")
        clocks = [window.frequency_khz for window in self.windows if window.frequency_khz]
        if clocks and min(clocks) < 0.95 * max(clocks):
            events.append(
                f"the clock fell from {max(clocks) / 1e6:.2f} to {min(clocks) / 1e6:.2f} GHz"
            )
        temperatures = [
            window.temperature_c for window in self.windows if window.temperature_c is not None
        ]
        if temperatures and max(temperatures) - temperatures[0] >= 5:
            events.append(
                f"the temperature rose from {temperatures[0]:.0f} to {max(temperatures):.0f} °C"
            )
        return events

    @computed
    def memory_growth_bytes(self) -> int | None:
        """Growth of resident memory from the end of the first quarter to the end."""
        sizes = [window.memory_bytes for window in self.windows if window.memory_bytes is not None]
        return sizes[-1] - sizes[len(sizes) // 4] if len(sizes) >= 4 else None

    @computed
    def settled_s(self) -> float | None:
        """Start of the steady state in seconds; None if it was never reached."""
        return None if self.settled_index is None else self.windows[self.settled_index].start_s

    @computed
    def steady_p50_ms(self) -> float | None:
        """Median of the steady state."""
        return self.steady_percentile_ms(50)

    @computed
    def steady_p90_ms(self) -> float | None:
        """90th percentile of the steady state."""
        return self.steady_percentile_ms(90)

    @computed
    def steady_p99_ms(self) -> float | None:
        """99th percentile of the steady state."""
        return self.steady_percentile_ms(99)

    @computed_as("drift")
    def _stored_drift(self) -> Drift | None:
        return self.drift


def _find_mser_cut(values: Sequence[float]) -> int:
    """Return the cut, at most the middle, with the smallest squared standard error of the rest.

    Sums are accumulated from the end, so the time is linear in the number of values.
    """
    middle = len(values) // 2
    best_cut = 0
    smallest_error = math.inf
    shift = values[-1]
    total, squares = 0.0, 0.0
    for cut in range(len(values) - 1, -1, -1):
        count = len(values) - cut
        deviation = values[cut] - shift
        total += deviation
        squares += deviation * deviation
        error = max(0.0, squares - total * total / count) / count**2
        if cut <= middle and error <= smallest_error:
            best_cut, smallest_error = cut, error
    return best_cut


def _resample_blocks(values: Sequence[float], generator: random.Random) -> list[float]:
    length = max(1, round(len(values) ** (1 / 3)))
    sample: list[float] = []
    while len(sample) < len(values):
        start = generator.randrange(len(values) - length + 1)
        sample += values[start : start + length]
    return sample[: len(values)]
