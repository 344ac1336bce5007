"""What is read before and after a timed block, beside the clock."""

from __future__ import annotations

from edgetl.device.energy import EnergyMeter
from edgetl.device.memory import resident_memory_bytes


class BlockWatch:
    """Energy and growth of memory of one block."""

    def __init__(self, meter: EnergyMeter) -> None:
        self._meter, self._held = meter, resident_memory_bytes()
        self.memory_growth_bytes: int | None = None
        self.energy_j: dict[str, float] = {}

    def start(self) -> None:
        """Take the first readings."""
        self._held = resident_memory_bytes()
        self._meter.start()

    def stop(self) -> None:
        """Take the second, and keep the differences."""
        self.energy_j = self._meter.stop()
        held = resident_memory_bytes()
        self.memory_growth_bytes = None if held is None or self._held is None else held - self._held
