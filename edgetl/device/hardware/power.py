"""Power source, battery charge and power mode of the device."""

from __future__ import annotations

import re
from pathlib import Path

from edgetl.device.hardware.procfs import SYS, read_int, read_text


def power_mode(root: Path = Path("/")) -> str | None:
    """Return a Jetson's power mode by name ("15W", "MAXN"), or by number if it has no name.

    nvpmodel stores the mode as `pmode:0002` in /var/lib/nvpmodel/status. Its name is in lines such
    as `< POWER_MODEL ID=2 NAME=15W >` of /etc/nvpmodel.conf (Jetson Linux Developer Guide,
    "Platform Power and Performance").
    """
    mode = re.search(
        r"pmode:0*(\d{1,4})\b", read_text(root / "var/lib/nvpmodel/status") or "", re.ASCII
    )
    if mode is None:
        return None
    config = read_text(root / "etc/nvpmodel.conf") or ""
    name = re.search(
        rf"^\s*<\s*POWER_MODEL\s+ID={mode.group(1)}\s+NAME=([\w.+-]+)", config, re.MULTILINE
    )
    return name.group(1) if name else mode.group(1)


def power_source(sys: Path = SYS) -> str | None:
    """Return the power source, "mains" or "battery"; None if no supply is reported.

    Source: Documentation/power/power_supply_class.rst.
    """
    supplies = _power_supply_folders(sys)
    adapters = [
        read_int(folder / "online")
        for folder in supplies
        if read_text(folder / "type") in ("Mains", "USB")
    ]
    if 1 in adapters:
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
    return "battery" if batteries and 0 in adapters else None


def battery_percent(sys: Path = SYS) -> int | None:
    """Return the charge of the emptiest battery, 0 to 100; None on the mains."""
    if power_source(sys) != "battery":
        return None
    charges = (
        read_int(folder / "capacity")
        for folder in _power_supply_folders(sys)
        if read_text(folder / "type") == "Battery"
    )
    valid_charges = (charge for charge in charges if charge is not None and 0 <= charge <= 100)
    return min(valid_charges, default=None)


def _power_supply_folders(sys: Path) -> list[Path]:
    """Return the machine's own supplies: a peripheral's battery (a mouse) has scope `Device`."""
    return [
        folder
        for folder in sorted((sys / "class/power_supply").glob("*"))
        if read_text(folder / "scope") != "Device"
    ]
