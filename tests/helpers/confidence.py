"""Confidence outputs for bundles whose export had no labeled validation images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgetl.core.artifacts.bundle import (
    BundleManifest,
    FileRecord,
    VariantRecord,
    read_bundle_manifest,
    write_bundle_manifest,
)
from edgetl.core.artifacts.confidence import (
    CalibrationFigures,
    CalibrationRecord,
    CoverageLevel,
    UnknownDetector,
    UnknownRecord,
)
from edgetl.core.artifacts.model_metadata import ModelMetadata
from edgetl.core.files import sha256_file
from edgetl.core.paths import BundleDirectory
from edgetl.export.bundle_writer import record_unknown_scores

LEVELS = (CoverageLevel(0.9, 0.3), CoverageLevel(0.95, 0.1))


def add_confidence(
    folder: Path,
    threshold: float,
    temperature: float = 1.0,
    levels: Sequence[CoverageLevel] = LEVELS,
) -> Path:
    """Add unknown scores, a temperature and prediction sets to every variant of a bundle.

    Args:
        folder: the bundle; its files are changed.
        threshold: images are unknown if their largest logit is below it.
        temperature: divisor of the logits in the softmax.
        levels: levels of the prediction sets.

    Returns:
        The folder.
    """
    directory = BundleDirectory(folder)
    manifest = read_bundle_manifest(directory)
    figures = CalibrationFigures(0.1, (0.05, 0.15), 0.5, 0.3)
    variants = []
    for item in manifest.variants:
        variant = replace(
            item,
            calibration=CalibrationRecord(temperature, 8, figures, figures),
            unknown=UnknownRecord(UnknownDetector("max_logit", 0.95), 8, {}, {}),
            prediction_sets=tuple(levels),
        )
        path = folder / variant.file
        _rewrite_model(path, manifest, variant, threshold)
        variants.append(replace(variant, sha256=sha256_file(path), bytes=path.stat().st_size))
    manifest = record_unknown_scores(directory, replace(manifest, variants=tuple(variants)))
    write_bundle_manifest(directory, _copy_to_web(folder, manifest))
    return folder


def _rewrite_model(
    path: Path, manifest: BundleManifest, variant: VariantRecord, threshold: float
) -> None:
    model = onnx.load(path)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    metadata = ModelMetadata.from_properties(properties) or ModelMetadata(
        manifest.labels, manifest.preprocessing, variant.input, manifest.run.id
    )
    metadata = replace(
        metadata,
        temperature=variant.temperature,
        unknown=variant.detector,
        prediction_sets=variant.prediction_sets,
    )
    helper.set_model_props(model, metadata.to_properties())
    graph = model.graph
    softmax = next(node for node in graph.node if "probabilities" in node.output)
    softmax.input[0] = "tempered_logits"
    constants = {
        "temperature": np.float32(variant.temperature),
        "zero_score": np.float32(threshold + 1),
        "classes_axis": np.array([1]),
    }
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
    )
    nodes = [
        helper.make_node("Div", ["logits", "temperature"], ["tempered_logits"]),
        helper.make_node("ReduceMax", ["logits", "classes_axis"], ["largest_logit"], keepdims=0),
        helper.make_node("Sub", ["zero_score", "largest_logit"], ["unknown_score"]),
    ]
    others = [node for node in graph.node if node != softmax]
    del graph.node[:]
    graph.node.extend([*others, *nodes, softmax])
    graph.output.append(
        helper.make_tensor_value_info("unknown_score", TensorProto.FLOAT, ["batch"])
    )
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def _copy_to_web(folder: Path, manifest: BundleManifest) -> BundleManifest:
    if manifest.web is None:
        return manifest
    variant = manifest.web.variant
    source = next(item.file for item in manifest.variants if item.name == variant)
    copy = folder / "web" / source
    copy.write_bytes((folder / source).read_bytes())
    record = FileRecord(f"web/{source}", sha256_file(copy), copy.stat().st_size)
    files = tuple(record if item.file == record.file else item for item in manifest.web.files)
    return replace(manifest, web=replace(manifest.web, files=files))
