"""Latency over a long run without a pause: when it settled, what it settled to, and whether it drifted."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import median
from typing import Any, Literal

from edgetl.core.statistics import percentile
from edgetl.core.typed_json import FieldError, parse_as

DRIFT_THRESHOLD = 0.02
"""Change of p50 from the run's first quarter to its last that is worth a word."""


@dataclass(frozen=True)
class LatencyWindow:
    """About a second of the run."""

    start_s: float
    """Since the run began."""
    latencies_ns: tuple[int, ...]
    frequency_khz: int | None = None
    temperature_c: float | None = None
    throttles: int | None = None
    """The processor's own throttle events since boot."""
    memory_bytes: int | None = None
    """Resident memory of the process."""

    @cached_property
    def median_ns(self) -> float:
        """Median latency of the window."""
        return median(self.latencies_ns)


@dataclass(frozen=True)
class Drift:
    """p50 of the last quarter over p50 of the first, with its 95% interval."""

    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> Literal["steady", "slower over time", "faster over time"]:
        """Steady unless the interval excludes 1 and the change is worth a word."""
        if self.low <= 1 <= self.high or abs(self.ratio - 1) < DRIFT_THRESHOLD:
            return "steady"
        return "slower over time" if self.ratio > 1 else "faster over time"


@dataclass(frozen=True)
class SustainedResult:
    """One configuration measured for minutes."""

    row: str
    """Id of the row whose configuration it is."""
    asked_s: float
    windows: tuple[LatencyWindow, ...]

    @cached_property
    def settled_index(self) -> int | None:
        """The window from which on the run was steady; None where it never was.

        MSER (White, 1997): as many windows are left out at the start as make the standard error of the rest's mean smallest;
        half of them or more means never.
        """
        values = [window.median_ns for window in self.windows]
        if len(values) < 4:
            return 0
        best = _find_mser_cut(values)
        return None if best == len(values) // 2 else best

    def steady_percentile_ms(self, percent: int) -> float | None:
        """A percentile of the steady part, or of everything where there is none; None where too few runs support it."""
        value = percentile(
            [
                latency
                for window in self.windows[self.settled_index or 0 :]
                for latency in window.latencies_ns
            ],
            percent,
        )
        return None if value is None else value / 1e6

    @cached_property
    def drift(self) -> Drift | None:
        """None for fewer than eight windows.

        Interval: moving-block bootstrap over windows (Künsch, 1989), because neighbouring windows are alike; blocks as long as the cube
        root of their number.
        """
        quarter = len(self.windows) // 4
        if quarter < 2:
            return None
        first, last = (
            [window.median_ns for window in part]
            for part in (self.windows[:quarter], self.windows[-quarter:])
        )
        generator = random.Random(0)
        ratios = sorted(
            median(_resample_blocks(last, generator)) / median(_resample_blocks(first, generator))
            for _ in range(2000)
        )
        ratio = median(last) / median(first)
        return Drift(ratio, min(ratio, ratios[49]), max(ratio, ratios[1949]))

    @property
    def processor_events(self) -> list[str]:
        """What happened to the processor meanwhile, in words; empty where nothing was seen."""
        found = []
        throttles = [window.throttles for window in self.windows if window.throttles is not None]
        if throttles and throttles[-1] > throttles[0]:
            count = throttles[-1] - throttles[0]
            found.append(f"the processor throttled itself {count} time{'s' if count > 1 else ''}")
        clocks = [window.frequency_khz for window in self.windows if window.frequency_khz]
        if clocks and min(clocks) < 0.95 * max(clocks):
            found.append(
                f"the clock fell from {max(clocks) / 1e6:.2f} to {min(clocks) / 1e6:.2f} GHz"
            )
        heat = [window.temperature_c for window in self.windows if window.temperature_c is not None]
        if heat and max(heat) - heat[0] >= 5:
            found.append(f"the temperature rose from {heat[0]:.0f} to {max(heat):.0f} °C")
        return found

    @property
    def memory_growth_bytes(self) -> int | None:
        """Resident memory at the end less that of the run's first quarter."""
        held = [window.memory_bytes for window in self.windows if window.memory_bytes is not None]
        return held[-1] - held[len(held) // 4] if len(held) >= 4 else None

    def to_json(self) -> dict[str, Any]:
        """As it stands in the result."""
        settled, drift = self.settled_index, self.drift
        return {
            "row": self.row,
            "asked_s": self.asked_s,
            "settled_s": None
            if settled is None or not self.windows
            else self.windows[settled].start_s,
            **{
                f"steady_p{percent}_ms": self.steady_percentile_ms(percent)
                if self.windows
                else None
                for percent in (50, 90, 99)
            },
            "drift": None if drift is None else {**asdict(drift), "verdict": drift.verdict},
            "reasons": self.processor_events,
            "memory_growth_bytes": self.memory_growth_bytes,
            "windows": [asdict(window) for window in self.windows],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> SustainedResult:
        """Read what `to_json` gave; its statistics are ignored.

        Raises:
            FieldError: a value of a wrong type, or a window without latencies.
        """
        stated = {name: content[name] for name in ("row", "asked_s", "windows")}
        sustained = parse_as(cls, stated, "sustained", extra="ignore")
        for window in sustained.windows:
            if not window.latencies_ns or min(window.latencies_ns) <= 0:
                raise FieldError("a window has no latencies, or some that are not above 0")
        return sustained


def _find_mser_cut(values: Sequence[float]) -> int:
    """The cut, at most in the middle, whose rest has the smallest squared standard error; sums run from the end: hours take no longer."""
    middle, best, least = len(values) // 2, 0, math.inf
    shift = values[-1]
    count, total, squares = 0, 0.0, 0.0
    for cut in range(len(values) - 1, -1, -1):
        away = values[cut] - shift
        count, total, squares = count + 1, total + away, squares + away * away
        error = max(0.0, squares - total * total / count) / count**2
        if cut <= middle and error <= least:
            best, least = cut, error
    return best


def _resample_blocks(values: Sequence[float], generator: random.Random) -> list[float]:
    length = max(1, round(len(values) ** (1 / 3)))
    drawn: list[float] = []
    while len(drawn) < len(values):
        start = generator.randrange(len(values) - length + 1)
        drawn += values[start : start + length]
    return drawn[: len(values)]
