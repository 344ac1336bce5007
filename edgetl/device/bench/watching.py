"""What is read before and after a timed block, beside the clock."""

from __future__ import annotations

from edgetl.device.energy import EnergyMeter
from edgetl.device.memory import resident_memory_bytes


class BlockWatch:
    """Energy and growth of memory of one block, over all its slices."""

    def __init__(self, meter: EnergyMeter) -> None:
        self._meter = meter
        self._held: int | None = None
        self._began = False
        self.memory_growth_bytes: int | None = None
        self.energy_j: dict[str, float] = {}

    def start(self) -> None:
        """A slice begins; growth counts from the first one."""
        if not self._began:
            self._held, self._began = resident_memory_bytes(), True
        self._meter.start()

    def stop(self) -> None:
        """It has ended: its energy adds up."""
        used = self._meter.stop()
        self.energy_j = {source: self.energy_j.get(source, 0.0) + joules for source, joules in used.items()}
        held = resident_memory_bytes()
        self.memory_growth_bytes = None if held is None or self._held is None else held - self._held
