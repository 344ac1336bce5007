"""Small handwritten bundles. No torch is needed, so they work with the packages of a device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image

from edgetl.core.artifacts.bundle import (
    BundleManifest,
    FileRecord,
    GoldenRecord,
    NetworkParity,
    ParityRecord,
    PathParity,
    RunReference,
    VariantRecord,
    write_bundle_manifest,
)
from edgetl.core.config.export import InputKind
from edgetl.core.files import sha256_file
from edgetl.core.paths import BundleDirectory
from edgetl.core.preprocessing import Preprocessing

LABELS = ["cat", "dog"]
CONTRACT = Preprocessing(resize=40, crop=32)
WEIGHT = np.array([[0.02, -0.01], [-0.015, 0.01], [0.005, 0.02]], np.float32)
BIAS = np.array([0.5, -0.25], np.float32)


def colour_model() -> onnx.ModelProto:
    """Return a model from uint8 [batch, height, width, 3] to two logits of the mean color."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]>
        colours (uint8[batch, height, width, 3] image) => (float[batch, 2] logits, float[batch, 2] probabilities)
        <int64[2] axes = {1, 2}> {
            pixels = Cast <to: int = 1> (image)
            colour = ReduceMean <keepdims: int = 0> (pixels, axes)
            scores = MatMul (colour, weight)
            logits = Add (scores, bias)
            probabilities = Softmax <axis: int = 1> (logits)
        }"""
    )
    model.graph.initializer.extend(
        [onnx.numpy_helper.from_array(WEIGHT, "weight"), onnx.numpy_helper.from_array(BIAS, "bias")]
    )
    onnx.checker.check_model(model)
    return model


def colour_logits(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Compute the logits of `colour_model` for an image [height, width, 3] with NumPy."""
    mean_color = image.astype(np.float64).mean((0, 1))
    logits: NDArray[np.float32] = (mean_color @ WEIGHT + BIAS).astype(np.float32)
    return logits


def write_pictures(folder: Path, count: int = 4) -> list[Path]:
    """Write PNG images of different sizes and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    paths = []
    for index in range(count):
        size = (50 + 7 * index, 60 - 5 * index, 3)
        tint = generator.integers(0, 200, 3)
        pixels = (generator.integers(0, 56, size) + tint).astype(np.uint8)
        paths.append(folder / f"{index}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def write_bundle(
    folder: Path,
    models: dict[str, onnx.ModelProto],
    logits: NDArray[np.float32],
    *,
    labels: list[str] = LABELS,
    contract: Preprocessing = CONTRACT,
    input_kind: InputKind = "image",
    run_id: str = "0123456789ab",
    tolerance: float = 0.05,
) -> Path:
    """Write a bundle around the images in folder/golden.

    Args:
        folder: folder of the bundle, with the golden images.
        models: model by variant name.
        logits: golden logits [images, classes].
        labels: names of the classes.
        contract: preprocessing.
        input_kind: image or tensor.
        run_id: id of the training run.
        tolerance: allowed difference of the logits.
    """
    golden = sorted((folder / "golden").glob("*.png"))
    np.savez(
        folder / "golden/golden.npz",
        files=np.array([f"golden/{path.name}" for path in golden]),
        logits=logits,
    )
    parity = ParityRecord(
        PathParity(len(golden), "generated", 1e-6, tolerance, 1.0),
        NetworkParity(len(golden), "generated", 1e-6, 1e-3),
    )
    variants = []
    for name, model in models.items():
        path = folder / f"{name}.onnx"
        path.write_bytes(model.SerializeToString())
        variants.append(
            VariantRecord(
                name=name,
                file=path.name,
                sha256=sha256_file(path),
                bytes=path.stat().st_size,
                precision="fp32",
                input=input_kind,
                opset=18,
                parity=parity,
                accuracy=None,
            )
        )
    client = folder / "predict.py"
    client.write_text("# client\n", encoding="utf-8")
    manifest = BundleManifest(
        edgetl="0.1.0",
        run=RunReference(run_id, "colours", "none"),
        labels=tuple(labels),
        preprocessing=contract,
        golden=GoldenRecord(
            "generated",
            tolerance,
            tuple(_file_record(folder, path) for path in golden),
            _file_record(folder, folder / "golden/golden.npz"),
        ),
        client=_file_record(folder, client),
        versions={},
        variants=tuple(variants),
        recommended=variants[0].name,
    )
    write_bundle_manifest(BundleDirectory(folder), manifest)
    return folder


def _file_record(folder: Path, path: Path) -> FileRecord:
    return FileRecord(path.relative_to(folder).as_posix(), sha256_file(path))
