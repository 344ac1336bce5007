"""What is read before and after a timed block, beside the clock."""

from __future__ import annotations

from edgetl.device.energy import EnergyMeter
from edgetl.device.memory import resident_memory_bytes


class BlockWatch:
    """Energy and growth of memory of one block, over all its slices."""

    def __init__(self, meter: EnergyMeter) -> None:
        self._meter = meter
        self._held: int | None = None
        self._slices = 0
        self.memory_growth_bytes: int | None = None
        self.energy_j: dict[str, float] = {}

    def start(self) -> None:
        """A slice begins; growth counts from the first one."""
        if self._slices == 0:
            self._held = resident_memory_bytes()
        self._meter.start()

    def stop(self) -> None:
        """It has ended: its energy adds up."""
        used = self._meter.stop()
        # A counter that failed in one slice has not seen all images: it says nothing about the block.
        known = used if self._slices == 0 else self.energy_j.keys() & used.keys()
        self.energy_j = {source: self.energy_j.get(source, 0.0) + used[source] for source in known}
        self._slices += 1
        held = resident_memory_bytes()
        self.memory_growth_bytes = None if held is None or self._held is None else held - self._held
