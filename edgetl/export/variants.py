"""The smaller variants of a bundle: made, written, and held against PyTorch on the proof images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgetl.core.config.export import ExportConfig
from edgetl.core.files import sha256_file
from edgetl.core.paths import BundleDirectory
from edgetl.core.preprocessing import Preprocessing
from edgetl.core.registry import QUANTIZERS, load_from_registry
from edgetl.device.bench.inputs import make_model_input
from edgetl.device.runtime.bundle import Variant
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import normalize, resize_and_crop
from edgetl.device.runtime.profile import profile_nodes, summarize_nodes
from edgetl.device.runtime.session import create_session
from edgetl.export.bundle_writer import write_model, write_ort
from edgetl.export.graph.assemble import assemble
from edgetl.export.graph.preprocessing import PIXELS
from edgetl.export.parity.divergence import describe_first_noisy_module
from edgetl.export.parity.metrics import (
    EvaluationImages,
    LabelFlip,
    Logits,
    compute_accuracy,
    compute_parity,
    find_label_flips,
    label_flips_to_json,
    logits_for_batches,
    logits_for_images,
)
from edgetl.export.quantize.task import QuantizationTask, QuantizedModel
from edgetl.export.selection import accuracy_drop
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
"""What integers are faster at."""
_INT8_CAPABLE_OPERATORS = (
    "QLinear", "QuantizeLinear", "DequantizeLinear", "DynamicQuantize", "MaxPool", "NhwcMaxPool",
    "Concat", "Flatten", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
)  # fmt: skip
"""What else works on integers, converts to and from them, or moves either."""
_MAX_LISTED_OPERATORS, _MIN_TIME_SHARE = 6, 0.02


def operator_times(network: onnx.ModelProto) -> dict[str, dict[str, Any]]:
    """Operator type, after ONNX Runtime's own fusions, to {"nodes", "share"} of the time of a run; the costliest first."""
    sides = [
        dimension.dim_value for dimension in network.graph.input[0].type.tensor_type.shape.dim[1:]
    ]
    # Times do not depend on what the picture shows.
    image, content = np.zeros((1, *sides), np.float32), network.SerializeToString()
    found = summarize_nodes(
        profile_nodes(
            lambda prefix: create_session(content, profile_prefix=prefix), {PIXELS: image}, _RUNS
        )
    )
    return {
        entry["operator"]: {"nodes": entry["nodes"], "share": entry["share"]}
        for entry in found["operators"]
    }


def slowest_operators_text(times: dict[str, dict[str, Any]]) -> str:
    """What a quantized network spends its time on besides multiplying integers, in words: the costliest operators."""
    named = [
        (kind, found)
        for kind, found in times.items()
        if not kind.startswith(_INT8_COMPUTE_OPERATORS) and found["share"] >= _MIN_TIME_SHARE
    ]
    return ", ".join(
        f"{kind} ({found['nodes']} nodes, {found['share']:.0%} of the time{'' if kind.startswith(_INT8_CAPABLE_OPERATORS) else ', in float'})"
        for kind, found in named[:_MAX_LISTED_OPERATORS]
    )


def draw_flips(path: Path, variant: str, flips: Sequence[LabelFlip], total: int) -> None:
    """Draw them as a PNG; where there are none the picture says so."""
    path.parent.mkdir(exist_ok=True)
    if not flips:
        save_message_figure(
            path, f"{variant}: no label changed", f"All {total} images get PyTorch's label."
        )
        return
    tiles = [
        Tile(
            thumbnail(load_image(flip.file)),
            flip.file.name,
            (
                *((("true", flip.truth, ""),) if flip.truth else ()),
                ("PyTorch", flip.expected, ""),
                (variant, flip.predicted, ""),
            ),
        )
        for flip in flips[:MAX_TILES]
    ]
    shown = f", {MAX_TILES} of them" if len(flips) > MAX_TILES else ""
    save_photo_sheet(
        path,
        f"{variant} labels {len(flips)} of {total} images otherwise than PyTorch{shown}",
        tiles,
    )


_FASTER = "faster"
_DIAGNOSIS_IMAGES = 4
"""Images that tell where a variant goes astray."""


@dataclass(frozen=True)
class VariantBuilder:
    """What all variants of a bundle are made with."""

    directory: BundleDirectory
    config: ExportConfig
    preprocessing: Preprocessing
    labels: Sequence[str]
    metadata: dict[str, Any]
    """For the ONNX files."""
    evaluation_images: EvaluationImages
    reference_logits: Logits
    """PyTorch's for the proof images, [images, classes]."""

    def write(self, name: str, network: onnx.ModelProto) -> Path:
        """The network with preprocessing and softmax around it, as a file of the bundle."""
        return write_model(
            self.directory,
            name,
            assemble(network, self.preprocessing, self.config.input, self.metadata),
        )

    def diagnosis_inputs(self) -> NDArray[np.float32]:
        """Of a few proof images, as the network takes them: [images, 3, S, S]."""
        return normalize(
            np.stack(
                [
                    resize_and_crop(load_image(path), self.preprocessing)
                    for path in self.evaluation_images.files[:_DIAGNOSIS_IMAGES]
                ]
            ),
            self.preprocessing,
        )

    def max_golden_difference(self, file: Path) -> float:
        """How far a file is from PyTorch on the reference images that lie in the bundle: in logits, and in the choice of the label.

        With it, how far it is from fp32 on the benchmark's tensors of them, which are cropped otherwise.
        """
        with np.load(self.directory.golden_logits, allow_pickle=False) as golden:
            images = EvaluationImages(
                [self.directory.path / name for name in golden["files"]], None, "golden"
            )
            found, reference = (
                logits_for_images(file, images, self.preprocessing, self.config.input),
                golden["logits"],
            )
        chosen = np.take_along_axis(reference, found.argmax(1)[:, None], 1)[:, 0]
        tensors = [
            make_model_input(load_image(path), self.preprocessing, self.config.input)
            for path in images.files
        ]
        apart = logits_for_batches(file, tensors) - logits_for_batches(
            self.directory.variant("fp32"), tensors
        )
        # numpy's maximum, unlike Python's, does not lose what is no number.
        return float(
            np.max(
                [
                    np.abs(found - reference).max(),
                    (reference.max(1) - chosen).max(),
                    np.abs(apart).max(),
                ]
            )
        )

    def describe(
        self, name: str, file: Path, precision: str, parity: dict[str, Any], logits: Logits
    ) -> Variant:
        """The manifest's entry for a file."""
        variant = Variant(
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
        )
        return (
            replace(variant, report={"ort": write_ort(file)}) if self.config.ort_format else variant
        )


@dataclass(frozen=True)
class BuiltVariant:
    """A smaller variant and what is known of it."""

    variant: Variant
    quantized_model: QuantizedModel
    flips: list[LabelFlip]

    def with_profile(self) -> Variant:
        """The entry, with the operators that keep it from being faster where it is not."""
        if self.variant.latency.get(
            "verdict"
        ) == _FASTER or not self.quantized_model.precision.startswith("int8"):
            return self.variant
        times = operator_times(self.quantized_model.network)
        return replace(
            self.variant,
            report={
                **self.variant.report,
                "slow_because": {"operators": times, "to_blame": slowest_operators_text(times)},
            },
        )


def make_variant(name: str, task: QuantizationTask, workshop: VariantBuilder) -> BuiltVariant:
    """Make, write and account for the variant `name`.

    Raises:
        ExportError: it cannot be made of this network.
    """
    quantized: QuantizedModel = load_from_registry(QUANTIZERS, name, "variant")(task)
    file = workshop.write(name, quantized.network)
    task.notify(f"Checking {name} on the {workshop.evaluation_images.kind} images", 0, 0)
    logits = logits_for_images(
        file, workshop.evaluation_images, workshop.preprocessing, workshop.config.input
    )
    found = find_label_flips(
        logits, workshop.reference_logits, workshop.evaluation_images, workshop.labels
    )
    parity = compute_parity(
        logits,
        workshop.reference_logits,
        workshop.evaluation_images.kind,
        workshop.max_golden_difference(file),
    )
    variant = workshop.describe(name, file, quantized.precision, parity, logits)
    report = {
        **variant.report,
        "chosen": quantized.summary,
        "search": quantized.report,
        "flips": label_flips_to_json(found),
    }
    if not quantized.is_within_limit or accuracy_drop(variant) > workshop.config.max_accuracy_drop:
        report["diverges"] = describe_first_noisy_module(
            task.network, quantized.network, task.module_outputs, workshop.diagnosis_inputs()
        )
    return BuiltVariant(replace(variant, report=report), quantized, found)
