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
from edgetl.core.registry import QUANTIZERS, resolve
from edgetl.device.bench.inputs import model_input
from edgetl.device.runtime.bundle import Variant
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import normalise, resize_and_crop
from edgetl.device.runtime.profile import node_times, summary
from edgetl.device.runtime.session import create_session
from edgetl.export.bundle_writer import write_model, write_ort
from edgetl.export.graph.assemble import assemble
from edgetl.export.graph.preprocessing import PIXELS
from edgetl.export.parity.divergence import first_noisy
from edgetl.export.parity.metrics import (
    Flip,
    Logits,
    ProofImages,
    accuracy,
    answers,
    distance,
    flips,
    flips_json,
    run_all,
)
from edgetl.export.quantize.task import Quantized, Task
from edgetl.export.selection import accuracy_drop
from edgetl.report.plots.contact_sheet import SHOWN, Tile, draw_sheet
from edgetl.report.plots.style import say_only
from edgetl.train.plots import thumbnail

_RUNS = 20
_PRODUCTS = (
    "QLinearConv",
    "QGemm",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
    "DynamicQuantizeMatMul",
)
"""What integers are faster at."""
_QUANTIZED = (
    "QLinear", "QuantizeLinear", "DequantizeLinear", "DynamicQuantize", "MaxPool", "NhwcMaxPool",
    "Concat", "Flatten", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
)  # fmt: skip
"""What else works on integers, converts to and from them, or moves either."""
_NAMED, _LEAST_SHARE = 6, 0.02


def operator_times(network: onnx.ModelProto) -> dict[str, dict[str, Any]]:
    """Operator type, after ONNX Runtime's own fusions, to {"nodes", "share"} of the time of a run; the costliest first."""
    sides = [
        dimension.dim_value for dimension in network.graph.input[0].type.tensor_type.shape.dim[1:]
    ]
    # Times do not depend on what the picture shows.
    image, content = np.zeros((1, *sides), np.float32), network.SerializeToString()
    found = summary(
        node_times(
            lambda prefix: create_session(content, profile_prefix=prefix), {PIXELS: image}, _RUNS
        )
    )
    return {
        entry["operator"]: {"nodes": entry["nodes"], "share": entry["share"]}
        for entry in found["operators"]
    }


def to_blame(times: dict[str, dict[str, Any]]) -> str:
    """What a quantized network spends its time on besides multiplying integers, in words: the costliest operators."""
    named = [
        (kind, found)
        for kind, found in times.items()
        if not kind.startswith(_PRODUCTS) and found["share"] >= _LEAST_SHARE
    ]
    return ", ".join(
        f"{kind} ({found['nodes']} nodes, {found['share']:.0%} of the time{'' if kind.startswith(_QUANTIZED) else ', in float'})"
        for kind, found in named[:_NAMED]
    )


def draw_flips(path: Path, variant: str, flips: Sequence[Flip], total: int) -> None:
    """Draw them as a PNG; where there are none the picture says so."""
    path.parent.mkdir(exist_ok=True)
    if not flips:
        say_only(path, f"{variant}: no label changed", f"All {total} images get PyTorch's label.")
        return
    tiles = [
        Tile(
            thumbnail(load_image(flip.file)),
            flip.file.name,
            (
                *((("true", flip.truth, ""),) if flip.truth else ()),
                ("PyTorch", flip.expected, ""),
                (variant, flip.found, ""),
            ),
        )
        for flip in flips[:SHOWN]
    ]
    shown = f", {SHOWN} of them" if len(flips) > SHOWN else ""
    draw_sheet(
        path,
        f"{variant} labels {len(flips)} of {total} images otherwise than PyTorch{shown}",
        tiles,
    )


_FASTER = "faster"
_LOOKED_AT = 4
"""Images that tell where a variant goes astray."""


@dataclass(frozen=True)
class Workshop:
    """What all variants of a bundle are made with."""

    directory: BundleDirectory
    config: ExportConfig
    contract: Preprocessing
    labels: Sequence[str]
    metadata: dict[str, Any]
    """For the ONNX files."""
    proof: ProofImages
    reference: Logits
    """PyTorch's for the proof images, [images, classes]."""

    def write(self, name: str, network: onnx.ModelProto) -> Path:
        """The network with preprocessing and softmax around it, as a file of the bundle."""
        return write_model(
            self.directory, name, assemble(network, self.contract, self.config.input, self.metadata)
        )

    def pixels(self) -> NDArray[np.float32]:
        """Of a few proof images, as the network takes them: [images, 3, S, S]."""
        return normalise(
            np.stack(
                [
                    resize_and_crop(load_image(path), self.contract)
                    for path in self.proof.files[:_LOOKED_AT]
                ]
            ),
            self.contract,
        )

    def distance_on_golden(self, file: Path) -> float:
        """How far a file is from PyTorch on the reference images that lie in the bundle: in logits, and in the choice of the label.

        With it, how far it is from fp32 on the benchmark's tensors of them, which are cropped otherwise.
        """
        with np.load(self.directory.golden_logits, allow_pickle=False) as golden:
            images = ProofImages(
                [self.directory.path / name for name in golden["files"]], None, "golden"
            )
            found, reference = (
                answers(file, images, self.contract, self.config.input),
                golden["logits"],
            )
        chosen = np.take_along_axis(reference, found.argmax(1)[:, None], 1)[:, 0]
        tensors = [
            model_input(load_image(path), self.contract, self.config.input) for path in images.files
        ]
        apart = run_all(file, tensors) - run_all(self.directory.variant("fp32"), tensors)
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
            accuracy=accuracy(logits, self.reference, self.proof, self.labels),
        )
        return (
            replace(variant, report={"ort": write_ort(file)}) if self.config.ort_format else variant
        )


@dataclass(frozen=True)
class Made:
    """A smaller variant and what is known of it."""

    variant: Variant
    quantized: Quantized
    flips: list[Flip]

    def with_blame(self) -> Variant:
        """The entry, with the operators that keep it from being faster where it is not."""
        if self.variant.latency.get(
            "verdict"
        ) == _FASTER or not self.quantized.precision.startswith("int8"):
            return self.variant
        times = operator_times(self.quantized.network)
        return replace(
            self.variant,
            report={
                **self.variant.report,
                "slow_because": {"operators": times, "to_blame": to_blame(times)},
            },
        )


def make_variant(name: str, task: Task, workshop: Workshop) -> Made:
    """Make, write and account for the variant `name`.

    Raises:
        ExportError: it cannot be made of this network.
    """
    quantized: Quantized = resolve(QUANTIZERS, name, "variant")(task)
    file = workshop.write(name, quantized.network)
    task.notify(f"Checking {name} on the {workshop.proof.kind} images", 0, 0)
    logits = answers(file, workshop.proof, workshop.contract, workshop.config.input)
    found = flips(logits, workshop.reference, workshop.proof, workshop.labels)
    parity = distance(
        logits, workshop.reference, workshop.proof.kind, workshop.distance_on_golden(file)
    )
    variant = workshop.describe(name, file, quantized.precision, parity, logits)
    report = {
        **variant.report,
        "chosen": quantized.told,
        "search": quantized.report,
        "flips": flips_json(found),
    }
    if not quantized.kept or accuracy_drop(variant) > workshop.config.max_accuracy_drop:
        report["diverges"] = first_noisy(
            task.network, quantized.network, task.module_outputs, workshop.pixels()
        )
    return Made(replace(variant, report=report), quantized, found)
