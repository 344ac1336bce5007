"""Variants for NPUs: a network file, with preprocessing and postprocessing beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from edgetl.core.artifacts.bundle import (
    FileRecord,
    SearchRecord,
    SplitRecord,
    VariantRecord,
)
from edgetl.core.artifacts.model_metadata import SplitFiles
from edgetl.core.config.export import ExportConfig
from edgetl.core.errors import ParityError
from edgetl.core.files import sha256_file
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import resize_and_crop
from edgetl.device.runtime.session import create_session
from edgetl.export.bundle_writer import write_model
from edgetl.export.confidence.confidence import Confidence
from edgetl.export.graph.preprocessing import (
    CROPPED_IMAGE,
    IMAGE,
    cropping_graph,
    preprocessing_graph,
)
from edgetl.export.npu.confidence import postprocessing_graph
from edgetl.export.npu.network import add_unknown_inputs, freeze_shapes, with_float_input
from edgetl.export.npu.providers import check_providers
from edgetl.export.npu.search import quantize_for_npu
from edgetl.export.parity.diagnosis import PIXEL_TOLERANCE
from edgetl.export.parity.metrics import (
    compute_parity,
    find_label_flips,
    logits_for_batches,
    logits_for_images,
)
from edgetl.export.quantize.rewrites import DECOMPOSED_OPERATORS, rewrite_operators
from edgetl.export.quantize.task import QuantizationTask
from edgetl.export.variants import MAX_LISTED_FLIPS, VariantBuilder

FP32, INT8 = "npu-fp32", "npu-int8"
"""Names of the variants."""
_FLOAT_METHOD = "float32, for tools that quantize or convert it themselves"


@dataclass(frozen=True)
class _SplitParts:
    preprocessing: onnx.ModelProto
    network: onnx.ModelProto
    """Network of static shapes, without metadata."""
    postprocessing: onnx.ModelProto


@dataclass(frozen=True)
class SplitWriter:
    """Writer of the variants for NPUs; each is proven through its three files."""

    builder: VariantBuilder
    task: QuantizationTask

    def write(self) -> Iterator[VariantRecord]:
        """Write and prove the float32 and the int8 variant.

        Raises:
            ExportError: a network cannot be quantized or given static shapes.
            ParityError: the float32 variant differs from the bundle's fp32 file, or the crop of the
                int8 variant from Pillow's.
        """
        yield self._write_fp32()
        yield self._write_int8()

    def _write_fp32(self) -> VariantRecord:
        builder = self.builder
        # Means over height and width become pools, which more providers have.
        network = rewrite_operators(self.task.network, sorted(DECOMPOSED_OPERATORS))
        confidence = self._estimate_confidence(network)
        opset, ir_version = _versions(network)
        before = preprocessing_graph(builder.preprocessing, opset, ir_version)
        file, split = self._write_files(FP32, _assemble(before, network, confidence), confidence)
        variant = self._describe(FP32, file, split, "fp32", confidence)
        self._check_equal_to_fp32(file)
        return replace(variant, report=replace(variant.report, method=_FLOAT_METHOD))

    def _check_equal_to_fp32(self, file: Path) -> None:
        """Compare with the bundle's fp32 file, which is proven equal to PyTorch."""
        builder = self.builder
        config, images = builder.config, builder.evaluation_images.files
        logits, expected = (
            logits_for_images(path, images, builder.preprocessing, config.input)
            for path in (file, builder.directory.variant("fp32"))
        )
        difference = float(np.abs(logits - expected).max())
        if not difference <= config.network_tolerance:  # also true for NaN
            raise ParityError(
                f"The logits of {file.name} differ from those of fp32.onnx by {difference:.3g}, "
                f"tolerance {config.network_tolerance:g}. No bundle was written. Leave out "
                "{split}; {network_tolerance} accepts the difference.",
                ExportConfig,
            )

    def _write_int8(self) -> VariantRecord:
        builder = self.builder
        quantized = quantize_for_npu(self.task, builder.preprocessing)
        with_pixels = with_float_input(quantized.network, builder.preprocessing)
        confidence = self._estimate_confidence(with_pixels)
        opset, ir_version = _versions(quantized.network)
        before = cropping_graph(builder.preprocessing, opset, ir_version)
        parts = _assemble(before, quantized.network, confidence)
        file, split = self._write_files(INT8, parts, confidence)
        variant = self._describe(INT8, file, split, quantized.precision, confidence)
        gray_levels = self._check_crops(parts.preprocessing)
        parity = replace(
            variant.parity, path=replace(variant.parity.path, max_grey_levels=gray_levels)
        )
        assert isinstance(quantized.search, SearchRecord)
        report = replace(variant.report, method=quantized.method, search=quantized.search)
        return replace(variant, parity=parity, report=report)

    def _estimate_confidence(self, network: onnx.ModelProto) -> Confidence:
        # A value within the network as another output would keep NPUs from fusing layers.
        reference = self.builder.fp32_confidence.without_intermediate()
        return self.builder.estimator.estimate(network, reference)

    def _write_files(
        self, name: str, parts: _SplitParts, confidence: Confidence
    ) -> tuple[Path, SplitRecord]:
        """Write the files; return the network's path and the record of the others."""
        directory = self.builder.directory
        coverage = tuple(check_providers(parts.network))
        before = write_model(directory, f"{name}.preprocessing", parts.preprocessing)
        after = write_model(directory, f"{name}.postprocessing", parts.postprocessing)
        metadata = replace(
            confidence.add_to_metadata(self.builder.metadata),
            split=SplitFiles(before.name, after.name),
            activation_maps=False,
        )
        network = onnx.ModelProto()
        network.CopyFrom(parts.network)
        network.graph.name = "edgetl"
        network.producer_name, network.producer_version = "edgetl", metadata.version
        helper.set_model_props(network, metadata.to_properties())
        onnx.checker.check_model(network, full_check=True)
        file = write_model(directory, name, network)
        return file, SplitRecord(_record_file(before), _record_file(after), coverage)

    def _describe(
        self, name: str, file: Path, split: SplitRecord, precision: str, confidence: Confidence
    ) -> VariantRecord:
        """Run the three files on all proof images and return the manifest entry."""
        builder, images = self.builder, self.builder.evaluation_images
        self.task.notify(f"Checking {name} on the {images.kind} images", 0, 0)
        config, reference = builder.config, builder.reference_logits
        logits = logits_for_images(file, images.files, builder.preprocessing, config.input)
        golden_difference = builder.max_golden_difference(partial(logits_for_batches, file))
        parity = compute_parity(logits, reference, images.kind, golden_difference)
        # Neither ORT format, which fuses operators for CPUs, nor activation maps suit an NPU.
        plain = replace(builder, config=replace(config, ort_format=False), map_proof=None)
        variant = plain.describe(name, file, precision, parity, logits, confidence)
        flips = find_label_flips(logits, reference, images, builder.labels)
        records = tuple(flip.record for flip in flips[:MAX_LISTED_FLIPS])
        report = replace(variant.report, flips=records)
        return replace(variant, report=report, split=split)

    def _check_crops(self, preprocessing: onnx.ModelProto) -> int:
        """Compare the file's crops with Pillow's; return the largest difference in gray levels."""
        session = create_session(preprocessing.SerializeToString())
        largest = 0
        for path in self.builder.evaluation_images.files:
            image = load_image(path)
            (crops,) = session.run([CROPPED_IMAGE], {IMAGE: image[None]})
            expected = resize_and_crop(image, self.builder.preprocessing).transpose(2, 0, 1)
            difference = int(np.abs(crops[0].astype(np.int16) - expected).max())
            if difference > PIXEL_TOLERANCE:
                raise ParityError(
                    f"The crop of {path} by {INT8}.preprocessing.onnx differs from Pillow's by "
                    f"{difference} gray levels; {PIXEL_TOLERANCE} are allowed. No bundle was "
                    "written. Use another version of onnxruntime."
                )
            largest = max(largest, difference)
        return largest


def _assemble(
    preprocessing: onnx.ModelProto, network: onnx.ModelProto, confidence: Confidence
) -> _SplitParts:
    static = freeze_shapes(network)
    features = None
    unknown = confidence.unknown_model
    if unknown is not None and unknown.score.bank is not None:
        features = add_unknown_inputs(static)
    return _SplitParts(preprocessing, static, postprocessing_graph(static, confidence, features))


def _versions(network: onnx.ModelProto) -> tuple[int, int]:
    opset = next(entry.version for entry in network.opset_import if entry.domain in ("", "ai.onnx"))
    return opset, network.ir_version


def _record_file(path: Path) -> FileRecord:
    return FileRecord(path.name, sha256_file(path), path.stat().st_size)
