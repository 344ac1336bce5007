"""Small bundles for tests: written by hand, without torch, so that a device's code is tested with a device's packages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image

from edgetl.core.files import sha256_file, write_json
from edgetl.core.preprocessing import Preprocessing

LABELS = ["cat", "dog"]
CONTRACT = Preprocessing(resize=40, crop=32)
WEIGHT = np.array([[0.02, -0.01], [-0.015, 0.01], [0.005, 0.02]], np.float32)
BIAS = np.array([0.5, -0.25], np.float32)


def colour_model() -> onnx.ModelProto:
    """uint8 [batch, height, width, 3] -> mean colour -> two logits: small, and easy to compute by hand."""
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
    """What `colour_model` must answer for one image [height, width, 3]."""
    logits: NDArray[np.float32] = (image.astype(np.float64).mean((0, 1)) @ WEIGHT + BIAS).astype(
        np.float32
    )
    return logits


def write_pictures(folder: Path, count: int = 4) -> list[Path]:
    """PNG pictures of different sizes."""
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
    input_kind: str = "image",
    run_id: str = "0123456789ab",
    tolerance: float = 0.05,
) -> Path:
    """A whole bundle around `models` (variant name to model) and the pictures that already lie in folder/golden."""
    golden = sorted((folder / "golden").glob("*.png"))
    np.savez(
        folder / "golden/golden.npz",
        files=np.array([f"golden/{path.name}" for path in golden]),
        logits=logits,
    )
    variants: list[dict[str, Any]] = []
    for name, model in models.items():
        path = folder / f"{name}.onnx"
        path.write_bytes(model.SerializeToString())
        size, digest = path.stat().st_size, sha256_file(path)
        entry = {
            "name": name,
            "file": path.name,
            "sha256": digest,
            "bytes": size,
            "precision": "fp32",
            "input": input_kind,
            "opset": 18,
        }
        variants.append(entry)
    images = [{"file": f"golden/{path.name}", "sha256": sha256_file(path)} for path in golden]
    arrays = {"file": "golden/golden.npz", "sha256": sha256_file(folder / "golden/golden.npz")}
    content = {
        "kind": "bundle",
        "labels": labels,
        "run": {"id": run_id, "model": "colours"},
        "preprocessing": contract.to_json(),
        "golden": {"kind": "generated", "images": images, "logits": arrays, "tolerance": tolerance},
        "variants": variants,
    }
    write_json(folder / "bundle.json", content)
    return folder
