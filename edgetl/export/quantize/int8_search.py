"""Static int8: search calibration methods and types, then repair until the accuracy fits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Literal

import onnx

from edgetl.core.artifacts.bundle import (
    CandidateRecord,
    QuantizationScheme,
    QuantizationScore,
    SearchRecord,
)
from edgetl.device.hardware.info import has_int8_dot_product
from edgetl.export.quantize.bias_correction import correct_biases, layers_by_error
from edgetl.export.quantize.calibration import CALIBRATION_METHODS, Calibration
from edgetl.export.quantize.equalization import equalize
from edgetl.export.quantize.gptq import WeightRounder
from edgetl.export.quantize.images import CroppedImages
from edgetl.export.quantize.layers import find_layers
from edgetl.export.quantize.qdq import quantize
from edgetl.export.quantize.rewrites import DECOMPOSED_OPERATORS, rewrite_operators
from edgetl.export.quantize.scoring import CandidateScorer
from edgetl.export.quantize.task import QuantizationTask, QuantizedModel

_MAX_SLOWDOWN = 1.25
"""Largest latency relative to the fastest candidate; smaller differences count as noise."""
_HOPELESS_SLOWDOWN = 2.0
"""Ratio, fastest of one activation type to slowest of the other, at which the former is skipped."""
_MAX_LISTED_LAYERS = 5
"""Number of worst layers listed in the report."""
_MAX_RESTORED_SHARE = 0.5
"""Largest share of the layers to restore to float."""
_Refinement = Literal["bias correction", "GPTQ"]
"""Change of the weights and biases that costs nothing at run time."""


@dataclass(frozen=True)
class Int8Candidate:
    """A quantized network with its record."""

    network: onnx.ModelProto
    record: CandidateRecord

    @property
    def score(self) -> QuantizationScore:
        """Score on the held-out images."""
        return self.record.score


@dataclass(frozen=True)
class _CalibratedNetwork:
    """A float network with what quantization needs from the calibration images."""

    model: onnx.ModelProto
    images: CroppedImages
    """Calibration images."""

    @cached_property
    def calibration(self) -> Calibration:
        """Activation statistics."""
        return Calibration(self.model, self.images)

    @cached_property
    def _rounder(self) -> WeightRounder:
        return WeightRounder(self.model, self.images)

    def refine(
        self,
        refinement: _Refinement | None,
        scheme: QuantizationScheme,
        excluded: tuple[str, ...],
    ) -> onnx.ModelProto:
        """Return the float network to quantize; layers in `excluded` are unchanged."""
        if refinement == "bias correction":
            return correct_biases(self.model, self.calibration, scheme, excluded)
        if refinement == "GPTQ":
            return self._rounder.round(scheme, excluded)
        return self.model


def quantize_static_int8(task: QuantizationTask) -> QuantizedModel:
    """Search for the best static int8 network.

    If no candidate meets the accuracy limit, the best one is returned with `is_within_limit` False.

    Raises:
        ExportError: there are too few images, or onnxruntime cannot quantize the network.
    """
    return _Int8Search(task).run()


def likely_schemes(has_vnni: bool) -> Iterator[QuantizationScheme]:
    """Yield the schemes that are chosen most often on a CPU."""
    for method in ("percentile", "minmax"):
        yield QuantizationScheme(method, True, "uint8", reduce_range=not has_vnni)


def all_schemes(has_vnni: bool) -> Iterator[QuantizationScheme]:
    """Yield all schemes to try on a CPU."""
    for method, per_channel in product(CALIBRATION_METHODS, (True, False)):
        yield QuantizationScheme(method, per_channel, "uint8", reduce_range=not has_vnni)
        yield QuantizationScheme(method, per_channel, "int8", reduce_range=not has_vnni)


@dataclass
class _Int8Search:
    task: QuantizationTask
    candidates: list[Int8Candidate] = field(default_factory=list)
    worst_layers: list[str] = field(default_factory=list)
    """Layer names by quantization error, worst first; empty if no repair was needed."""

    def run(self) -> QuantizedModel:
        task = self.task
        self._network = _CalibratedNetwork(rewrite_operators(task.network), task.images.calibration)
        self._refinement: _Refinement | None = None
        self._scorer = CandidateScorer(task.network, task.images.held_out)
        task.notify("Observing activations for int8", 0, 0)
        vnni = has_int8_dot_product()
        self._float_score = self._scorer.score(task.network)
        if task.search != "thorough":
            best = self._try_schemes(likely_schemes(vnni))
        if task.search == "thorough" or (task.search == "auto" and not self._is_useful(best)):
            best = self._try_schemes(all_schemes(vnni))
            if not self._is_within_limit(best):
                best = self._repair(best)
        search = SearchRecord(
            calibration_images=len(task.images.calibration),
            held_out_images=len(task.images.held_out),
            float_score=self._float_score,
            vnni=vnni,
            chosen_index=self.candidates.index(best),
            is_within_limit=self._is_within_limit(best),
            candidates=tuple(candidate.record for candidate in self.candidates),
            worst_layers=tuple(self.worst_layers[:_MAX_LISTED_LAYERS]),
        )
        return QuantizedModel(best.network, "int8", best.record.summary, search)

    def _try_schemes(self, schemes: Iterable[QuantizationScheme]) -> Int8Candidate:
        """Try schemes that were not tried yet; return the best of all, with refined weights."""
        self._refinement = None
        tried = {candidate.record.scheme for candidate in self.candidates}
        remaining = [scheme for scheme in schemes if scheme not in tried]
        for number, scheme in enumerate(remaining):
            self.task.notify("Searching for int8", number, len(remaining))
            if not self._is_hopeless(scheme):
                self._try_scheme(scheme)
        unrepaired = [candidate for candidate in self.candidates if not candidate.record.repairs]
        return self._refine(self._select_best(unrepaired))

    def _try_scheme(
        self,
        scheme: QuantizationScheme,
        repairs: tuple[str, ...] = (),
        restored: tuple[str, ...] = (),
    ) -> Int8Candidate:
        network = self._network.refine(self._refinement, scheme, restored)
        ranges = self._network.calibration.ranges(scheme.method)
        quantized = quantize(network, ranges, scheme, restored)
        score = self._scorer.score(quantized)
        candidate = Int8Candidate(quantized, CandidateRecord(scheme, score, repairs, restored))
        self.candidates.append(candidate)
        return candidate

    def _is_hopeless(self, scheme: QuantizationScheme) -> bool:
        # If all candidates of this activation type are over twice as slow as the slowest of the
        # other type, no calibration method can fix that.
        same_type_ms, other_type_ms = [], []
        for candidate in self.candidates:
            if candidate.record.scheme.activations == scheme.activations:
                same_type_ms.append(candidate.score.ms)
            else:
                other_type_ms.append(candidate.score.ms)
        if not same_type_ms or not other_type_ms:
            return False
        return min(same_type_ms) > _HOPELESS_SLOWDOWN * max(other_type_ms)

    def _is_useful(self, candidate: Int8Candidate) -> bool:
        return self._is_within_limit(candidate) and candidate.score.ms < self._float_score.ms

    def _is_within_limit(self, candidate: Int8Candidate) -> bool:
        return candidate.score.drop <= self.task.max_accuracy_drop

    def _select_best(self, candidates: list[Int8Candidate]) -> Int8Candidate:
        # Among the fast candidates within the accuracy limit, take the one with the highest SQNR.
        # If none is within the limit, take the smallest accuracy drop among those that are faster
        # than float, or among all if none is.
        fitting = [candidate for candidate in candidates if self._is_within_limit(candidate)]
        if not fitting:
            float_ms = self._float_score.ms
            faster = [candidate for candidate in candidates if candidate.score.ms < float_ms]
            return min(faster or candidates, key=_loss)
        fastest_ms = min(candidate.score.ms for candidate in fitting)
        limit_ms = _MAX_SLOWDOWN * fastest_ms
        fast = [candidate for candidate in fitting if candidate.score.ms <= limit_ms]
        return max(fast, key=lambda candidate: candidate.score.sqnr_db)

    def _refine(self, best: Int8Candidate) -> Int8Candidate:
        # Refinements are free at run time, so they are tried even if the accuracy already fits.
        self.task.notify("Refining the weights of int8", 0, 0)
        scheme = best.record.scheme
        tried = {
            candidate.record.repairs: candidate
            for candidate in self.candidates
            if candidate.record.scheme == scheme
        }
        chosen: _Refinement | None = None
        for refinement in self._refinements():
            self._refinement = refinement
            candidate = tried.get((refinement,)) or self._try_scheme(scheme, (refinement,))
            if _is_better(candidate, best):
                best, chosen = candidate, refinement
        self._refinement = chosen
        return best

    def _refinements(self) -> Iterator[_Refinement]:
        yield "bias correction"
        if self.task.search != "quick":
            yield "GPTQ"

    def _repair(self, best: Int8Candidate) -> Int8Candidate:
        repairs = (
            (self._without_rewrites, "activations in float"),
            (self._with_equalization, "cross-layer equalisation"),
        )
        for repair, name in repairs:
            self.task.notify(f"Repairing int8: {name}", 0, 0)
            repaired = repair()
            if repaired is None:
                continue
            previous = self._network
            self._network = repaired
            candidate = self._try_scheme(best.record.scheme, (*best.record.repairs, name))
            if _is_better(candidate, best):
                best = candidate
            else:
                self._network = previous
            if self._is_within_limit(best):
                return best
        return self._restore_layers(best)

    def _without_rewrites(self) -> _CalibratedNetwork | None:
        # Rewritten operators are faster, but each of their steps rounds the values again.
        operators = {node.op_type for node in self.task.network.graph.node}
        if not operators & DECOMPOSED_OPERATORS:
            return None
        return _CalibratedNetwork(self.task.network, self._network.images)

    def _with_equalization(self) -> _CalibratedNetwork | None:
        equalized = equalize(self._network.model)
        if equalized is None:
            return None
        return _CalibratedNetwork(equalized, self._network.images)

    def _restore_layers(self, best: Int8Candidate) -> Int8Candidate:
        scheme = best.record.scheme
        self.worst_layers = layers_by_error(
            self._network.model,
            self._network.calibration.ranges(scheme.method),
            scheme,
            self._network.images,
        )
        limit = int(len(list(find_layers(self._network.model))) * _MAX_RESTORED_SHARE)
        count = 1
        while count <= limit:
            self.task.notify("Restoring layers to float", count, limit)
            restored = tuple(self.worst_layers[:count])
            candidate = self._try_scheme(scheme, best.record.repairs, restored)
            if self._is_within_limit(candidate):
                return candidate
            best = min(best, candidate, key=lambda candidate: candidate.score.drop)
            # Double the count each time; the last attempt restores exactly `limit` layers.
            count = limit if count < limit < 2 * count else 2 * count
        return best


def _is_better(candidate: Int8Candidate, best: Int8Candidate) -> bool:
    return _loss(candidate) < _loss(best)


def _loss(candidate: Int8Candidate) -> tuple[float, float]:
    """Return the sort key for accuracy: the drop, then the negative SQNR."""
    return candidate.score.drop, -candidate.score.sqnr_db
