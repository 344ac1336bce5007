"""How figures and devices are written for people, on the terminal and on the page alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MISSING_VALUE = "—"
"""Stands where there is no figure: not measured, or withheld; a note or a tooltip tells why."""


PROFILE_CLOCK_DESCRIPTIONS = {
    "gpu": "time on the GPU",
    "host": "time on the host",
    "host dispatch": "host dispatch: how long the host took to launch the work, not how long the GPU worked",
}
"""What the times of a profile are, by its field `clock`; results of before have none."""


def format_milliseconds(value: float | None) -> str:
    """Three significant digits or so; the dash where there is none."""
    if value is None:
        return MISSING_VALUE
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def pluralize(count: int, thing: str, things: str = "") -> str:
    """`1 thread`, `2 threads`; `things` is the plural where an s does not make it."""
    return f"{count} {thing}" if count == 1 else f"{count} {things or thing + 's'}"


def describe_device(device: Mapping[str, Any]) -> str:
    """The device of a result as people call it: its board, or what else it tells of itself."""
    if device.get("emulated"):
        # The board is the emulator's host, and so may be the processor's name.
        return f"emulated {device.get('machine')} ({device.get('cpu')})"
    told = (device.get(name) for name in ("board", "cpu", "machine", "host"))
    return str(next(filter(None, told), "a device that does not tell its name"))


def format_gpu_state(state: Mapping[str, Any]) -> str:
    """Describe a row's GPU state (`Row.gpu`): clocks, heat, power, memory, throttling."""
    clocks, limit = state["sm_clock_mhz"], state["max_sm_clock_mhz"]
    parts = []
    if clocks:
        low, high = clocks
        clock = f"{high}" if low == high else f"{low} to {high}"
        parts.append(f"SM {clock} MHz" + (f" of {limit}" if limit else ""))
    figures = (("temperature_c", 1, "°C"), ("power_w", 1, "W"), ("memory_used_bytes", 2**20, "MiB"))
    parts += [
        f"{state[name] / unit:.0f} {label}"
        for name, unit, label in figures
        if state[name] is not None
    ]
    return ", ".join(
        [*parts, f"throttle reasons: {', '.join(state['throttle_reasons']) or 'none'}"]
    )


def format_percent(share: float | None) -> str:
    """A share with one digit after the point, or the dash."""
    return MISSING_VALUE if share is None else f"{share:.1%}"


def format_duration(seconds: float) -> str:
    """`0.4 s`, `22 s`, `4 min 10 s`, `2 h 5 min`."""
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if seconds < 3570:
        return f"{round(seconds) // 60} min {round(seconds) % 60} s"
    return f"{minutes // 60} h {minutes % 60} min"
