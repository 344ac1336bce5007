"""Search for the int8 network file: calibration methods, and the form of activation functions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx

from edgetl.core.artifacts.bundle import (
    CalibrationMethodName,
    CandidateRecord,
    QuantizationScheme,
    SearchRecord,
)
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.hardware.info import has_int8_dot_product
from edgetl.export.npu.network import quantize_network, with_float_input
from edgetl.export.quantize.bias_correction import correct_biases
from edgetl.export.quantize.calibration import CALIBRATION_METHODS, Calibration
from edgetl.export.quantize.gptq import WeightRounder
from edgetl.export.quantize.rewrites import DECOMPOSED_OPERATORS, rewrite_operators
from edgetl.export.quantize.scoring import CandidateScorer
from edgetl.export.quantize.task import QuantizationTask, QuantizedModel

_QUICK_METHODS: tuple[CalibrationMethodName, ...] = ("percentile", "minmax")
KEPT_OPERATORS = "hard activations as single operators"


def quantize_for_npu(task: QuantizationTask, preprocessing: Preprocessing) -> QuantizedModel:
    """Search for the most accurate int8 network that NPUs take whole.

    Hard swish and hard sigmoid are written as Mul, Add and Clip, which every provider has. If that
    loses too much accuracy, they are also tried as single operators, which NNAPI lacks.

    Returns:
        The network `cropped` uint8 [batch, 3, S, S] -> `logits`. If no candidate meets the accuracy
        limit, `is_within_limit` is False.

    Raises:
        ExportError: there are too few images, or onnxruntime cannot quantize the network.
    """
    return _NpuSearch(task, preprocessing).run()


@dataclass
class _NpuSearch:
    task: QuantizationTask
    preprocessing: Preprocessing
    networks: list[onnx.ModelProto] = field(default_factory=list)
    """Quantized networks, in the order of `records`."""
    records: list[CandidateRecord] = field(default_factory=list)

    def run(self) -> QuantizedModel:
        task = self.task
        # 8-bit weights overflow in the int8 kernels for other CPUs, not on NPUs.
        has_dot_product = has_int8_dot_product()
        self._scorer = CandidateScorer(
            task.network, task.images.held_out, int8_kernels=has_dot_product
        )
        float_score = self._scorer.score(task.network)
        self._try_methods(())
        has_hard_activations = any(
            node.op_type in DECOMPOSED_OPERATORS for node in task.network.graph.node
        )
        if has_hard_activations and not self._is_within_limit(self._best_index()):
            self._try_methods(sorted(DECOMPOSED_OPERATORS))
        best = self._best_index()
        search = SearchRecord(
            calibration_images=len(task.images.calibration),
            held_out_images=len(task.images.held_out),
            float_score=float_score,
            vnni=has_dot_product,
            chosen_index=best,
            is_within_limit=self._is_within_limit(best),
            candidates=tuple(self.records),
        )
        return QuantizedModel(self.networks[best], "int8", self.records[best].summary, search)

    def _try_methods(self, kept_operators: list[str] | tuple[str, ...]) -> None:
        task = self.task
        task.notify("Observing activations for NPUs", 0, 0)
        network = rewrite_operators(task.network, kept_operators)
        calibration = Calibration(network, task.images.calibration)
        form: tuple[str, ...] = (KEPT_OPERATORS,) if kept_operators else ()
        models = {
            (*form, *refinement): model
            for refinement, model in self._refined_models(network, calibration)
        }
        for method in self._methods():
            task.notify(f"Quantizing for NPUs, {method}", 0, 0)
            ranges = calibration.ranges(method)
            for repairs, model in models.items():
                quantized = quantize_network(model, ranges, self.preprocessing)
                score = self._scorer.score(with_float_input(quantized, self.preprocessing))
                self.networks.append(quantized)
                self.records.append(CandidateRecord(_scheme(method), score, repairs))

    def _refined_models(
        self, network: onnx.ModelProto, calibration: Calibration
    ) -> Iterator[tuple[tuple[str, ...], onnx.ModelProto]]:
        """Yield the network and its refinements, each with the names of what was done."""
        # Weights do not depend on the calibration method. Only convolutions have scales by channel.
        scheme = _scheme("minmax")
        by_tensor = {node.name for node in network.graph.node if node.op_type != "Conv"}
        yield (), network
        yield ("bias correction",), correct_biases(network, calibration, scheme, by_tensor)
        if self.task.search != "quick":
            rounder = WeightRounder(network, self.task.images.calibration)
            yield ("GPTQ",), rounder.round(scheme, by_tensor)

    def _methods(self) -> Iterator[CalibrationMethodName]:
        yield from CALIBRATION_METHODS if self.task.search == "thorough" else _QUICK_METHODS

    def _best_index(self) -> int:
        # Latency is the NPU's matter: the most accurate candidate is the best.
        def loss(index: int) -> tuple[float, float]:
            score = self.records[index].score
            return max(0.0, score.drop - self.task.max_accuracy_drop), -score.sqnr_db

        return min(range(len(self.records)), key=loss)

    def _is_within_limit(self, index: int) -> bool:
        return self.records[index].score.drop <= self.task.max_accuracy_drop


def _scheme(method: CalibrationMethodName) -> QuantizationScheme:
    return QuantizationScheme(method, per_channel=True, activations="uint8")
