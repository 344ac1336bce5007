"""What feeds the device, and how much of it the device may take."""

from __future__ import annotations

import re
from pathlib import Path

from edgetl.device.hardware.procfs import SYS, read_int, read_text


def power_mode(root: Path = Path("/")) -> str | None:
    """A Jetson's power mode by name ("15W", "MAXN"), or by number where its table does not name it.

    nvpmodel keeps the mode as `pmode:0002` in /var/lib/nvpmodel/status and names it in /etc/nvpmodel.conf by lines
    `< POWER_MODEL ID=2 NAME=15W >` (Jetson Linux Developer Guide, "Platform Power and Performance").
    """
    mode = re.search(
        r"pmode:0*(\d{1,4})\b", read_text(root / "var/lib/nvpmodel/status") or "", re.ASCII
    )
    if mode is None:
        return None
    table = read_text(root / "etc/nvpmodel.conf") or ""
    named = re.search(
        rf"^\s*<\s*POWER_MODEL\s+ID={mode.group(1)}\s+NAME=([\w.+-]+)", table, re.MULTILINE
    )
    return named.group(1) if named else mode.group(1)


def power_source(sys: Path = SYS) -> str | None:
    """What feeds the machine, "mains" or "battery" (Documentation/power/power_supply_class.rst); None where no supply is shown."""
    supplies = _power_supply_folders(sys)
    plugs = [
        read_int(folder / "online")
        for folder in supplies
        if read_text(folder / "type") in ("Mains", "USB")
    ]
    if 1 in plugs:
        return "mains"
    batteries = [
        read_text(folder / "status")
        for folder in supplies
        if read_text(folder / "type") == "Battery"
    ]
    if "Discharging" in batteries:
        return "battery"
    if any(status in ("Charging", "Full", "Not charging") for status in batteries):
        return "mains"
    return "battery" if batteries and 0 in plugs else None


def battery_percent(sys: Path = SYS) -> int | None:
    """The charge of the battery that is emptied most, 0 to 100; None on the mains."""
    if power_source(sys) != "battery":
        return None
    charges = (
        read_int(folder / "capacity")
        for folder in _power_supply_folders(sys)
        if read_text(folder / "type") == "Battery"
    )
    return min(
        (charge for charge in charges if charge is not None and 0 <= charge <= 100), default=None
    )


def _power_supply_folders(sys: Path) -> list[Path]:
    """Those of the machine itself: a mouse's battery has scope `Device`."""
    return [
        folder
        for folder in sorted((sys / "class/power_supply").glob("*"))
        if read_text(folder / "scope") != "Device"
    ]
