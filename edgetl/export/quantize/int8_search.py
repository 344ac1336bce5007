"""Static int8: a search over calibration methods and types, then repairs until the accuracy fits or int8 is given up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import onnx

from edgetl.device.hardware.info import has_int8_dot_product
from edgetl.export.quantize.bias_correction import correct_biases, layers_by_error
from edgetl.export.quantize.calibration import CALIBRATION_METHODS, Calibration
from edgetl.export.quantize.equalization import equalize
from edgetl.export.quantize.layers import find_layers
from edgetl.export.quantize.qdq import Scheme, quantize
from edgetl.export.quantize.rewrites import DECOMPOSED_OPERATORS, rewrite_operators
from edgetl.export.quantize.scoring import CandidateScore, CandidateScorer
from edgetl.export.quantize.task import QuantizationTask, QuantizedModel

_MAX_SLOWDOWN = 1.25
"""A candidate that takes this much longer than the fastest is out; nearer ones differ by noise, and accuracy decides."""
_HOPELESS_SLOWDOWN = 2.0
"""A type of activations is given up when its fastest takes so many times the other's slowest."""
_MAX_LISTED_LAYERS = 5
"""Worst layers that are named."""
_MAX_RESTORED_SHARE = 0.5
"""Share of the layers that may go back to float before int8 is given up."""


@dataclass(frozen=True)
class Int8Candidate:
    """A network that was tried."""

    scheme: Scheme
    network: onnx.ModelProto
    score: CandidateScore
    repairs: tuple[str, ...] = ()
    """In words, in the order in which they were made."""
    restored_layers: tuple[str, ...] = ()
    """Layers that stay in float."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in bundle.json."""
        return {
            "scheme": self.scheme.to_json(),
            "repairs": list(self.repairs),
            "restored_layers": list(self.restored_layers),
            "held_back": self.score.to_json(),
        }


def quantize_static_int8(task: QuantizationTask) -> QuantizedModel:
    """The search; its outcome may lose more than the budget, which `kept` then says.

    Raises:
        ExportError: too few images, or the quantizer cannot take the network.
    """
    return _Int8Search(task).run()


def candidate_schemes(has_vnni: bool, quick: bool = False) -> Iterator[Scheme]:
    """Everything that is tried on a CPU; quickly, what is chosen most often."""
    if quick:
        yield from (
            Scheme(method, True, "uint8", reduce_range=not has_vnni)
            for method in ("percentile", "minmax")
        )
        return
    for method, per_channel in product(CALIBRATION_METHODS, (True, False)):
        yield Scheme(method, per_channel, "uint8", reduce_range=not has_vnni)
        yield Scheme(method, per_channel, "int8", reduce_range=not has_vnni)


@dataclass
class _Int8Search:
    task: QuantizationTask
    candidates: list[Int8Candidate] = field(default_factory=list)
    worst_layers: list[str] = field(default_factory=list)
    """Layers by what quantizing them destroys; empty while nothing had to be repaired."""

    def run(self) -> QuantizedModel:
        task = self.task
        self._network, self._uses_bias_correction = rewrite_operators(task.network), False
        self._scorer = CandidateScorer(task.network, task.images.held_out)
        task.notify("Observing activations for int8", 0, 0)
        self._calibration = Calibration(self._network, task.images.calibration)
        vnni = has_int8_dot_product()
        self._float_score = self._scorer.score(task.network)
        wanted = list(candidate_schemes(vnni, task.quick))
        for number, scheme in enumerate(wanted):
            task.notify("Searching for int8", number, len(wanted))
            if not self._is_hopeless(scheme):
                self._try_scheme(scheme)
        best = self._correct_bias(self._select_best(self.candidates))
        if not self._is_within_limit(best):
            best = self._repair(best)
        report = {
            "calibration_images": len(task.images.calibration),
            "held_back_images": len(task.images.held_out),
            "float": self._float_score.to_json(),
            "vnni": vnni,
            "chosen": self.candidates.index(best),
            "fits": self._is_within_limit(best),
            "worst_layers": self.worst_layers[:_MAX_LISTED_LAYERS],
            "candidates": [candidate.to_json() for candidate in self.candidates],
        }
        return QuantizedModel(
            best.network,
            "int8",
            report,
            is_within_limit=self._is_within_limit(best),
            summary=self._summarize(best),
        )

    def _try_scheme(
        self, scheme: Scheme, repairs: tuple[str, ...] = (), restored: tuple[str, ...] = ()
    ) -> Int8Candidate:
        network = (
            correct_biases(self._network, self._calibration, scheme, restored)
            if self._uses_bias_correction
            else self._network
        )
        quantized = quantize(network, self._calibration.ranges(scheme.method), scheme, restored)
        candidate = Int8Candidate(
            scheme, quantized, self._scorer.score(quantized), repairs, restored
        )
        self.candidates.append(candidate)
        return candidate

    def _is_hopeless(self, scheme: Scheme) -> bool:
        # Of another type of activations all that was tried takes twice as long as the slowest of the first: no range will mend that.
        own = [
            candidate.score.ms
            for candidate in self.candidates
            if candidate.scheme.activations == scheme.activations
        ]
        others = [
            candidate.score.ms
            for candidate in self.candidates
            if candidate.scheme.activations != scheme.activations
        ]
        return bool(own and others) and min(own) > _HOPELESS_SLOWDOWN * max(others)

    def _is_within_limit(self, candidate: Int8Candidate) -> bool:
        return candidate.score.drop <= self.task.max_accuracy_drop

    def _select_best(self, candidates: list[Int8Candidate]) -> Int8Candidate:
        # Those that fit the budget; of these the fast ones; of these the one nearest to float. None fits: of those that are any faster than
        # float, if there are, the one that loses least.
        fitting = [candidate for candidate in candidates if self._is_within_limit(candidate)]
        if not fitting:
            faster = [
                candidate for candidate in candidates if candidate.score.ms < self._float_score.ms
            ]
            return min(
                faster or candidates,
                key=lambda candidate: (candidate.score.drop, -candidate.score.sqnr_db),
            )
        fastest = min(candidate.score.ms for candidate in fitting)
        fast = [candidate for candidate in fitting if candidate.score.ms <= _MAX_SLOWDOWN * fastest]
        return max(fast, key=lambda candidate: candidate.score.sqnr_db)

    def _correct_bias(self, best: Int8Candidate) -> Int8Candidate:
        # What rounded weights do to the mean of a channel costs nothing to take back: it is tried whether the accuracy fits or not.
        self.task.notify("Correcting biases of int8", 0, 0)
        self._uses_bias_correction = True
        found = self._try_scheme(best.scheme, ("bias correction",))
        self._uses_bias_correction = _is_better(found, best)
        return found if self._uses_bias_correction else best

    def _repair(self, best: Int8Candidate) -> Int8Candidate:
        if self.task.quick:
            return best
        repairs = (
            (self._without_rewrites, "activations in float"),
            (self._with_equalization, "cross-layer equalisation"),
        )
        for repair, name in repairs:
            self.task.notify(f"Repairing int8: {name}", 0, 0)
            made = repair()
            if made is None:
                continue
            before = self._network, self._calibration
            self._network, self._calibration = made
            found = self._try_scheme(best.scheme, (*best.repairs, name))
            if _is_better(found, best):
                best = found
            else:
                self._network, self._calibration = before
            if self._is_within_limit(best):
                return best
        return self._restore_layers(best)

    def _without_rewrites(self) -> tuple[onnx.ModelProto, Calibration] | None:
        # Rewritten operators are faster, and each of their steps rounds once more.
        kinds = {node.op_type for node in self.task.network.graph.node}
        if not kinds & DECOMPOSED_OPERATORS:
            return None
        return self.task.network, Calibration(self.task.network, self.task.images.calibration)

    def _with_equalization(self) -> tuple[onnx.ModelProto, Calibration] | None:
        evened = equalize(self._network)
        return (
            None if evened is None else (evened, Calibration(evened, self.task.images.calibration))
        )

    def _restore_layers(self, best: Int8Candidate) -> Int8Candidate:
        scheme = best.scheme
        self.worst_layers = layers_by_error(
            self._network,
            self._calibration.ranges(scheme.method),
            scheme,
            self.task.images.calibration,
        )
        most, count = int(len(list(find_layers(self._network))) * _MAX_RESTORED_SHARE), 1
        while count <= most:
            self.task.notify("Restoring layers to float", count, most)
            found = self._try_scheme(scheme, best.repairs, tuple(self.worst_layers[:count]))
            if self._is_within_limit(found):
                return found
            best = min(best, found, key=lambda candidate: candidate.score.drop)
            count = most if count < most < 2 * count else 2 * count
        return best

    def _summarize(self, best: Int8Candidate) -> str:
        after = f" after {', '.join(best.repairs)}" if best.repairs else ""
        floats = f", {len(best.restored_layers)} layers in float" if best.restored_layers else ""
        return f"{best.scheme.name}{after}{floats}"


def _is_better(one: Int8Candidate, other: Int8Candidate) -> bool:
    return (one.score.drop, -one.score.sqnr_db) < (other.score.drop, -other.score.sqnr_db)
