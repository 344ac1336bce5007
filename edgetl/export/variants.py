"""Smaller variants of a bundle: quantize, write and compare with PyTorch on the proof images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from edgetl.core.artifacts.bundle import (
    BuildReport,
    OperatorTime,
    ParityRecord,
    SlowOperators,
    VariantRecord,
)
from edgetl.core.artifacts.model_metadata import ModelMetadata
from edgetl.core.config.export import ExportConfig
from edgetl.core.files import sha256_file
from edgetl.core.paths import BundleDirectory
from edgetl.core.preprocessing import Preprocessing
from edgetl.core.registry import QUANTIZERS, load_from_registry
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import make_model_input
from edgetl.device.runtime.profile import profile_nodes, summarize_operators
from edgetl.device.runtime.session import create_session
from edgetl.export.accuracy import AccuracyTest
from edgetl.export.bundle_writer import write_model, write_ort
from edgetl.export.confidence.confidence import Confidence
from edgetl.export.confidence.estimator import ConfidenceEstimator
from edgetl.export.graph.activation_maps import add_activation_maps
from edgetl.export.graph.assemble import assemble
from edgetl.export.graph.preprocessing import PIXELS
from edgetl.export.parity.activation_maps import ActivationMapProof
from edgetl.export.parity.divergence import describe_first_noisy_module
from edgetl.export.parity.metrics import (
    EvaluationImages,
    FlippedImage,
    Logits,
    compute_accuracy,
    compute_parity,
    find_label_flips,
    load_network_inputs,
    logits_for_batches,
    logits_for_images,
    model_inputs,
)
from edgetl.export.quantize.task import QuantizationTask, QuantizedModel
from edgetl.export.variant_selection import accuracy_drop
from edgetl.report.plots.contact_sheet import MAX_TILES, Tile, save_photo_sheet
from edgetl.report.plots.style import save_message_figure
from edgetl.train.plots import thumbnail

_RUNS = 20
_INT8_COMPUTE_OPERATORS = (
    "QLinearConv",
    "QGemm",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
    "DynamicQuantizeMatMul",
)
"""Operators that onnxruntime computes faster in integers."""
_INT8_CAPABLE_OPERATORS = (
    "QLinear", "QuantizeLinear", "DequantizeLinear", "DynamicQuantize", "MaxPool", "NhwcMaxPool",
    "Concat", "Flatten", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
)  # fmt: skip
"""Other operators that work on integers, convert to or from them, or move data."""
MAX_LISTED_FLIPS = 50
"""Largest number of flips listed in bundle.json."""
_MAX_LISTED_OPERATORS, _MIN_TIME_SHARE = 6, 0.02


def operator_times(network: onnx.ModelProto) -> dict[str, OperatorTime]:
    """Profile a network; return the time of each operator type, the most expensive first.

    Types are those after ONNX Runtime's fusions.
    """
    dimensions = network.graph.input[0].type.tensor_type.shape.dim[1:]
    shape = [dimension.dim_value for dimension in dimensions]
    # Times do not depend on the image content.
    pixels = np.zeros((1, *shape), np.float32)
    content = network.SerializeToString()
    nodes = profile_nodes(
        lambda prefix: create_session(content, profile_prefix=prefix), {PIXELS: pixels}, _RUNS
    )
    return {
        time.operator: OperatorTime(time.nodes, time.share) for time in summarize_operators(nodes)
    }


def slowest_operators_text(times: Mapping[str, OperatorTime]) -> str:
    """Describe the most expensive operators of a quantized network, int8 products left out."""
    descriptions = []
    for operator, time in times.items():
        if operator.startswith(_INT8_COMPUTE_OPERATORS) or time.share < _MIN_TIME_SHARE:
            continue
        suffix = "" if operator.startswith(_INT8_CAPABLE_OPERATORS) else ", in float"
        descriptions.append(
            f"{operator} ({time.nodes} nodes, {time.share:.0%} of the time{suffix})"
        )
    return ", ".join(descriptions[:_MAX_LISTED_OPERATORS])


def draw_flips(path: Path, variant: str, flips: Sequence[FlippedImage], total: int) -> None:
    """Draw the images whose label changed as a PNG, or a message if there are none."""
    path.parent.mkdir(exist_ok=True)
    if not flips:
        save_message_figure(
            path, f"{variant}: no label changed", f"All {total} images get PyTorch's label."
        )
        return
    tiles = [_flip_tile(flip, variant) for flip in flips[:MAX_TILES]]
    suffix = f" (showing {MAX_TILES})" if len(flips) > MAX_TILES else ""
    title = f"{variant} and PyTorch differ in the label of {len(flips)} of {total} images{suffix}"
    save_photo_sheet(path, title, tiles)


def _flip_tile(flip: FlippedImage, variant: str) -> Tile:
    labels = [("PyTorch", flip.expected, ""), (variant, flip.predicted, "")]
    if flip.truth:
        labels.insert(0, ("true", flip.truth, ""))
    return Tile(thumbnail(load_image(flip.file)), flip.file.name, tuple(labels))


_DIAGNOSIS_IMAGES = 4
"""Number of images used to find the first module that diverges."""


@dataclass(frozen=True)
class VariantBuilder:
    """Writer of variants, with the inputs that all variants of a bundle share."""

    directory: BundleDirectory
    config: ExportConfig
    preprocessing: Preprocessing
    labels: Sequence[str]
    metadata: ModelMetadata
    """Metadata written into each ONNX file."""
    evaluation_images: EvaluationImages
    reference_logits: Logits
    """PyTorch's logits for the proof images, [images, classes]."""
    estimator: ConfidenceEstimator
    fp32_confidence: Confidence
    accuracy_test: AccuracyTest | None = None
    """Measurement on the test images; None if the run has none."""
    map_proof: ActivationMapProof | None = None
    """Proof of the output `activation_maps`; None if the graphs do not have it."""

    def write(self, name: str, network: onnx.ModelProto, confidence: Confidence) -> Path:
        """Add preprocessing and outputs to `network` and write it as a file of the bundle."""
        model = assemble(
            network,
            self.preprocessing,
            self.config.input,
            self.metadata,
            confidence=confidence,
        )
        return write_model(self.directory, name, model)

    def diagnosis_inputs(self) -> NDArray[np.float32]:
        """Return network inputs for a few proof images, [images, 3, S, S]."""
        paths = self.evaluation_images.files[:_DIAGNOSIS_IMAGES]
        return load_network_inputs(paths, self.preprocessing)

    def max_golden_difference(
        self, run: Callable[[Iterable[NDArray[np.generic]]], Logits]
    ) -> float:
        """Return the largest difference of a variant on the bundle's golden images.

        It is the maximum of three values: the logit difference from PyTorch, the gap in PyTorch's
        logits between its label and the file's label, and the logit difference from fp32 on the
        benchmark's tensors, which are cropped differently.

        Args:
            run: compute logits for batches of the variant's input.
        """
        with np.load(self.directory.golden_logits, allow_pickle=False) as golden:
            paths = [self.directory.path / name for name in golden["files"]]
            logits = run(model_inputs(paths, self.preprocessing, self.config.input))
            reference = golden["logits"]
        predicted_logit = np.take_along_axis(reference, logits.argmax(1)[:, None], 1)[:, 0]
        tensors = [
            make_model_input(load_image(path), self.preprocessing, self.config.input)
            for path in paths
        ]
        fp32_logits = logits_for_batches(self.directory.variant("fp32"), tensors)
        fp32_difference = run(tensors) - fp32_logits
        differences = [
            np.abs(logits - reference).max(),
            (reference.max(1) - predicted_logit).max(),
            np.abs(fp32_difference).max(),
        ]
        # numpy's maximum propagates NaN, Python's does not.
        return float(np.max(differences))

    def describe(
        self,
        name: str,
        file: Path,
        precision: str,
        parity: ParityRecord,
        logits: Logits,
        confidence: Confidence,
        size: tuple[int, int] | None = None,
    ) -> VariantRecord:
        """Return the manifest entry of a file; with `ort_format`, also write its .ort file."""
        test = self.accuracy_test
        if self.map_proof is not None:
            parity = replace(parity, activation_maps=self.map_proof.check(file, precision))
        variant = VariantRecord(
            name=name,
            file=file.name,
            sha256=sha256_file(file),
            bytes=file.stat().st_size,
            precision=precision,
            input=self.config.input,
            opset=self.config.opset,
            parity=parity,
            accuracy=compute_accuracy(
                logits, self.reference_logits, self.evaluation_images, self.labels
            ),
            report=BuildReport(ort=write_ort(file) if self.config.ort_format else None),
            size=size,
            test_accuracy=None if test is None else test.measure_file(file, size),
        )
        return confidence.add_to_record(variant)


@dataclass(frozen=True)
class BuiltVariant:
    """A smaller variant with its quantized network and label flips."""

    variant: VariantRecord
    quantized_model: QuantizedModel
    flips: list[FlippedImage]
    confidence: Confidence

    def with_profile(self) -> VariantRecord:
        """Return the manifest entry; an int8 variant that is not faster gets its operator times."""
        if self.variant.is_faster or not self.quantized_model.precision.startswith("int8"):
            return self.variant
        times = operator_times(self.quantized_model.network)
        slow_because = SlowOperators(times, slowest_operators_text(times))
        report = replace(self.variant.report, slow_because=slow_because)
        return replace(self.variant, report=report)


def make_variant(name: str, task: QuantizationTask, builder: VariantBuilder) -> BuiltVariant:
    """Quantize the network as variant `name`, write the file and compare it with PyTorch.

    Raises:
        ExportError: the network cannot be quantized this way.
    """
    quantized: QuantizedModel = load_from_registry(QUANTIZERS, name, "variant")(task)
    confidence = builder.estimator.estimate(quantized.network, builder.fp32_confidence)
    network = quantized.network
    if builder.config.explain:
        network = add_activation_maps(network, task.network)
    file = builder.write(name, network, confidence)
    images = builder.evaluation_images
    task.notify(f"Checking {name} on the {images.kind} images", 0, 0)
    logits = logits_for_images(file, images.files, builder.preprocessing, builder.config.input)
    reference = builder.reference_logits
    flips = find_label_flips(logits, reference, images, builder.labels)
    golden_difference = builder.max_golden_difference(partial(logits_for_batches, file))
    parity = compute_parity(logits, reference, images.kind, golden_difference)
    variant = builder.describe(name, file, quantized.precision, parity, logits, confidence)
    report = replace(
        variant.report,
        method=quantized.method,
        search=quantized.search,
        flips=tuple(flip.record for flip in flips[:MAX_LISTED_FLIPS]),
    )
    if not quantized.is_within_limit or accuracy_drop(variant) > builder.config.max_accuracy_drop:
        divergence = describe_first_noisy_module(
            task.network, quantized.network, task.module_outputs, builder.diagnosis_inputs()
        )
        report = replace(report, divergence=divergence)
    return BuiltVariant(replace(variant, report=report), quantized, flips, confidence)
