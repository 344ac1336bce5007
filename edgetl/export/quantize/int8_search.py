"""Static int8: a search over calibration methods and types, then repairs until the accuracy fits or int8 is given up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import onnx

from edgetl.device.hardware.info import multiplies_8_bit
from edgetl.export.quantize.bias_correction import by_error, correct_biases
from edgetl.export.quantize.calibration import METHODS, Calibration
from edgetl.export.quantize.equalization import equalise
from edgetl.export.quantize.layers import layers
from edgetl.export.quantize.qdq import Scheme, quantize
from edgetl.export.quantize.rewrites import ROUNDS_MORE, rewrite
from edgetl.export.quantize.scoring import Referee, Score
from edgetl.export.quantize.task import Quantized, Task

_SLOWER = 1.25
"""A candidate that takes this much longer than the fastest is out; nearer ones differ by noise, and accuracy decides."""
_HOPELESS = 2.0
"""A type of activations is given up when its fastest takes so many times the other's slowest."""
_NAMED = 5
"""Worst layers that are named."""
_MOST_RESTORED = 0.5
"""Share of the layers that may go back to float before int8 is given up."""


@dataclass(frozen=True)
class Candidate:
    """A network that was tried."""

    scheme: Scheme
    network: onnx.ModelProto
    score: Score
    repairs: tuple[str, ...] = ()
    """In words, in the order in which they were made."""
    restored: tuple[str, ...] = ()
    """Layers that stay in float."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in bundle.json."""
        return {
            "scheme": self.scheme.to_json(),
            "repairs": list(self.repairs),
            "restored_layers": list(self.restored),
            "held_back": self.score.to_json(),
        }


def static_int8(task: Task) -> Quantized:
    """The search; its outcome may lose more than the budget, which `kept` then says.

    Raises:
        ExportError: too few images, or the quantizer cannot take the network.
    """
    return _Search(task).run()


def schemes(has_vnni: bool, quick: bool = False) -> Iterator[Scheme]:
    """Everything that is tried on a CPU; quickly, what is chosen most often."""
    if quick:
        yield from (
            Scheme(method, True, "uint8", reduce_range=not has_vnni)
            for method in ("percentile", "minmax")
        )
        return
    for method, per_channel in product(METHODS, (True, False)):
        yield Scheme(method, per_channel, "uint8", reduce_range=not has_vnni)
        yield Scheme(method, per_channel, "int8", reduce_range=not has_vnni)


@dataclass
class _Search:
    task: Task
    tried: list[Candidate] = field(default_factory=list)
    worst: list[str] = field(default_factory=list)
    """Layers by what quantizing them destroys; empty while nothing had to be repaired."""

    def run(self) -> Quantized:
        task = self.task
        self._network, self._corrects = rewrite(task.network), False
        self._referee = Referee(task.network, task.images.held_back)
        task.notify("Observing activations for int8", 0, 0)
        self._calibration = Calibration(self._network, task.images.calibration)
        vnni = multiplies_8_bit()
        self._float = self._referee.score(task.network)
        wanted = list(schemes(vnni, task.quick))
        for number, scheme in enumerate(wanted):
            task.notify("Searching for int8", number, len(wanted))
            if not self._is_hopeless(scheme):
                self._try(scheme)
        best = self._corrected(self._best(self.tried))
        if not self._fits(best):
            best = self._repaired(best)
        report = {
            "calibration_images": len(task.images.calibration),
            "held_back_images": len(task.images.held_back),
            "float": self._float.to_json(),
            "vnni": vnni,
            "chosen": self.tried.index(best),
            "fits": self._fits(best),
            "worst_layers": self.worst[:_NAMED],
            "candidates": [candidate.to_json() for candidate in self.tried],
        }
        return Quantized(best.network, "int8", report, kept=self._fits(best), told=self._told(best))

    def _try(
        self, scheme: Scheme, repairs: tuple[str, ...] = (), restored: tuple[str, ...] = ()
    ) -> Candidate:
        network = (
            correct_biases(self._network, self._calibration, scheme, restored)
            if self._corrects
            else self._network
        )
        quantized = quantize(network, self._calibration.ranges(scheme.method), scheme, restored)
        candidate = Candidate(scheme, quantized, self._referee.score(quantized), repairs, restored)
        self.tried.append(candidate)
        return candidate

    def _is_hopeless(self, scheme: Scheme) -> bool:
        # Of another type of activations all that was tried takes twice as long as the slowest of the first: no range will mend that.
        own = [
            candidate.score.ms
            for candidate in self.tried
            if candidate.scheme.activations == scheme.activations
        ]
        others = [
            candidate.score.ms
            for candidate in self.tried
            if candidate.scheme.activations != scheme.activations
        ]
        return bool(own and others) and min(own) > _HOPELESS * max(others)

    def _fits(self, candidate: Candidate) -> bool:
        return candidate.score.drop <= self.task.max_drop

    def _best(self, candidates: list[Candidate]) -> Candidate:
        # Those that fit the budget; of these the fast ones; of these the one nearest to float. None fits: of those that are any faster than
        # float, if there are, the one that loses least.
        fitting = [candidate for candidate in candidates if self._fits(candidate)]
        if not fitting:
            faster = [candidate for candidate in candidates if candidate.score.ms < self._float.ms]
            return min(
                faster or candidates,
                key=lambda candidate: (candidate.score.drop, -candidate.score.sqnr_db),
            )
        fastest = min(candidate.score.ms for candidate in fitting)
        fast = [candidate for candidate in fitting if candidate.score.ms <= _SLOWER * fastest]
        return max(fast, key=lambda candidate: candidate.score.sqnr_db)

    def _corrected(self, best: Candidate) -> Candidate:
        # What rounded weights do to the mean of a channel costs nothing to take back: it is tried whether the accuracy fits or not.
        self.task.notify("Correcting biases of int8", 0, 0)
        self._corrects = True
        found = self._try(best.scheme, ("bias correction",))
        self._corrects = _is_better(found, best)
        return found if self._corrects else best

    def _repaired(self, best: Candidate) -> Candidate:
        if self.task.quick:
            return best
        repairs = (
            (self._as_it_was, "activations in float"),
            (self._equalised, "cross-layer equalisation"),
        )
        for repair, name in repairs:
            self.task.notify(f"Repairing int8: {name}", 0, 0)
            made = repair()
            if made is None:
                continue
            before = self._network, self._calibration
            self._network, self._calibration = made
            found = self._try(best.scheme, (*best.repairs, name))
            if _is_better(found, best):
                best = found
            else:
                self._network, self._calibration = before
            if self._fits(best):
                return best
        return self._restored(best)

    def _as_it_was(self) -> tuple[onnx.ModelProto, Calibration] | None:
        # Rewritten operators are faster, and each of their steps rounds once more.
        kinds = {node.op_type for node in self.task.network.graph.node}
        if not kinds & ROUNDS_MORE:
            return None
        return self.task.network, Calibration(self.task.network, self.task.images.calibration)

    def _equalised(self) -> tuple[onnx.ModelProto, Calibration] | None:
        evened = equalise(self._network)
        return (
            None if evened is None else (evened, Calibration(evened, self.task.images.calibration))
        )

    def _restored(self, best: Candidate) -> Candidate:
        scheme = best.scheme
        self.worst = by_error(
            self._network,
            self._calibration.ranges(scheme.method),
            scheme,
            self.task.images.calibration,
        )
        most, count = int(len(list(layers(self._network))) * _MOST_RESTORED), 1
        while count <= most:
            self.task.notify("Restoring layers to float", count, most)
            found = self._try(scheme, best.repairs, tuple(self.worst[:count]))
            if self._fits(found):
                return found
            best = min(best, found, key=lambda candidate: candidate.score.drop)
            count = most if count < most < 2 * count else 2 * count
        return best

    def _told(self, best: Candidate) -> str:
        after = f" after {', '.join(best.repairs)}" if best.repairs else ""
        floats = f", {len(best.restored)} layers in float" if best.restored else ""
        return f"{best.scheme.name}{after}{floats}"


def _is_better(one: Candidate, other: Candidate) -> bool:
    return (one.score.drop, -one.score.sqnr_db) < (other.score.drop, -other.score.sqnr_db)
