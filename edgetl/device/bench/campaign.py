"""The rounds with the device's state on both sides of them, and what becomes of them where something ends them early."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from typing import Any

from edgetl.core.errors import BenchError, EdgetlError
from edgetl.core.results import Noise
from edgetl.core.rows import Round, relative_spread
from edgetl.device.bench.proving import Contender
from edgetl.device.bench.rounds import Progress, Rounds
from edgetl.device.noise import judge
from edgetl.device.state import device_state


class Campaign:
    """One measurement; what was measured before it was ended is as good as ever."""

    def __init__(self) -> None:
        self.rounds = Rounds()
        self.stopped: BaseException | None = None
        """What ended it early."""
        self.states: dict[str, Any] = {}
        """The device `before` and `after` the rounds."""
        self._own_cpu_s = 0.0

    @contextmanager
    def until_stopped(self) -> Iterator[None]:
        """What ends the block early waits in `stopped`.

        Raises:
            KeyboardInterrupt, EdgetlError: it ended before anything was measured.
        """
        try:
            yield
        except (KeyboardInterrupt, EdgetlError, OSError) as cause:
            if self.rounds.blocks:
                self.stopped = cause
            elif isinstance(cause, KeyboardInterrupt):
                raise KeyboardInterrupt(
                    "Interrupted before anything was measured: nothing was kept."
                ) from cause
            else:
                raise (
                    cause
                    if isinstance(cause, EdgetlError)
                    else BenchError(f"Nothing could be measured: {cause}.")
                ) from cause

    def measure(
        self, able: Sequence[Contender], count: int, seed: int, folder: Path, progress: Progress
    ) -> None:
        """Measure `count` rounds of those that may be timed; what comes after them neither dilutes their noise nor adds to it.

        Raises:
            BenchError: as `Rounds.measure`.
        """
        before, cpu_before = device_state(), own_cpu_s_so_far()
        try:
            self.rounds.measure(able, count if able else 0, seed, folder, progress)
        finally:
            self.states = {"before": before, "after": device_state()}
            self._own_cpu_s = own_cpu_s_so_far() - cpu_before

    def noise(self, measured: Mapping[str, Sequence[Round]]) -> Noise:
        """Whether the device was left alone, judged by its states and by each row's rounds."""
        timed = {name: rounds for name, rounds in measured.items() if rounds}
        if not timed:
            return Noise(())
        spreads = {
            name: relative_spread([block.median_ns for block in rounds])
            for name, rounds in timed.items()
        }
        clocks = [
            [block.frequency_khz for block in rounds if block.frequency_khz is not None]
            for rounds in timed.values()
        ]
        gpus = [[block.gpu for block in rounds if block.gpu] for rounds in timed.values()]
        gpu_rounds = [readings for readings in gpus if readings]
        return judge(
            self.states["before"],
            self.states["after"],
            self._own_cpu_s,
            spreads,
            clocks,
            gpu_rounds=gpu_rounds,
        )

    def tell(
        self, measured: Mapping[str, Sequence[Round]], path: Path | None, notes: Sequence[str]
    ) -> None:
        """Raise what ended it early, with what was kept; do nothing where it came to its end.

        Args:
            measured: each row's rounds.
            path: where the result lies; None where there was space nowhere.
            notes: what the keeping of it had to say.

        Raises:
            KeyboardInterrupt, BenchError: it was ended early.
        """
        if self.stopped is None:
            return
        kept = f"{sum(map(bool, measured.values()))} of {len(measured)} rows have figures, kept in {path}."
        told = " ".join([*([] if path is None else [kept]), *notes])
        if isinstance(self.stopped, KeyboardInterrupt):
            raise KeyboardInterrupt(f"Interrupted: {told}") from self.stopped
        raise BenchError(f"{self.stopped} {told}") from self.stopped


def own_cpu_s_so_far() -> float:
    """CPU seconds of this process and of the workers that it has waited for."""
    used = [getrusage(whose) for whose in (RUSAGE_SELF, RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
