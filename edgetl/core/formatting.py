"""Formatting of numbers for the terminal and for pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgetl.core.artifacts.bench_rows import GpuSummary
    from edgetl.core.statistics import Speedup

MISSING_VALUE = "—"
"""Placeholder for a missing value: not measured, or not supported by the data."""


PROFILE_CLOCK_DESCRIPTIONS = {
    "gpu": "time on the GPU",
    "host": "time on the host",
    "host dispatch": "host dispatch: time to launch the work, not the time of the GPU",
}
"""Meaning of the times of a profile, by its field `clock`, which older results lack."""


def format_milliseconds(value: float | None) -> str:
    """Return about three significant digits, or a dash for None."""
    if value is None:
        return MISSING_VALUE
    if value < 1:
        return f"{value:.3f}"
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def pluralize(count: int, singular: str, plural: str = "") -> str:
    """Return `1 thread` or `2 threads`; `plural` is needed if it is not formed with an s."""
    return f"{count} {singular}" if count == 1 else f"{count} {plural or singular + 's'}"


def format_gpu_state(state: GpuSummary) -> str:
    """Describe a row's GPU state: clocks, temperature, power, memory and throttling."""
    parts = []
    if state.sm_clock_mhz is not None:
        low, high = state.sm_clock_mhz
        clock = f"{high}" if low == high else f"{low} to {high}"
        limit = f" of {state.max_sm_clock_mhz}" if state.max_sm_clock_mhz else ""
        parts.append(f"SM {clock} MHz{limit}")
    if state.temperature_c is not None:
        parts.append(f"{state.temperature_c:.0f} °C")
    if state.power_w is not None:
        parts.append(f"{state.power_w:.0f} W")
    if state.memory_used_bytes is not None:
        parts.append(f"{state.memory_used_bytes / 2**20:.0f} MiB")
    parts.append(f"throttle reasons: {', '.join(state.throttle_reasons) or 'none'}")
    return ", ".join(parts)


def format_speedup(speedup: Speedup) -> str:
    """Format a speed-up with its interval as `2.64× [2.05, 3.39]`."""
    return f"{speedup.ratio:.2f}× [{speedup.low:.2f}, {speedup.high:.2f}]"


def format_percent(share: float | None) -> str:
    """Return a percentage with one decimal, or a dash for None."""
    return MISSING_VALUE if share is None else f"{share:.1%}"


def format_duration(seconds: float) -> str:
    """Return a duration such as `0.4 s`, `22 s`, `4 min 10 s` or `2 h 5 min`."""
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if seconds < 3570:
        return f"{round(seconds) // 60} min {round(seconds) % 60} s"
    return f"{minutes // 60} h {minutes % 60} min"


def format_node_counts(counts: Mapping[str, float]) -> str:
    """Format nodes by onnxruntime's providers, most first: `CUDA 97%, CPU 3%`.

    Args:
        counts: numbers of nodes, or shares that add up to 1.
    """
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(
        f"{name.removesuffix('ExecutionProvider')} {count / total:.1%}" for name, count in ordered
    )
