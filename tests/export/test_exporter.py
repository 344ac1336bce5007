"""Export of a complete bundle: its content, and cleanup after failed proofs and errors."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image

from edgetl.core.artifacts.model_metadata import ModelMetadata
from edgetl.core.config.export import ExportConfig
from edgetl.core.errors import BundleError, ConfigError, DataError, ExportError, ParityError
from edgetl.core.files import sha256_file
from edgetl.device.runtime.bundle import open_bundle
from edgetl.device.runtime.classifier import open_classifier
from edgetl.device.runtime.preprocessing import preprocess
from edgetl.export import exporter
from edgetl.export.exporter import export_architecture
from edgetl.export.graph import assemble
from edgetl.train.model.factory import load_stock_model
from tests.conftest import ARCHITECTURE, IMAGE_SIZE


def test_bundle_matches_its_manifest(stock_bundle: Path) -> None:
    manifest = json.loads((stock_bundle / "bundle.json").read_text())
    names = {
        str(path.relative_to(stock_bundle)) for path in stock_bundle.rglob("*") if path.is_file()
    }
    golden = {entry["file"] for entry in manifest["golden"]["images"]}
    assert names == {
        "bundle.json",
        "fp32.onnx",
        "predict.cpp",
        "predict.py",
        "README.md",
        "golden/golden.npz",
        *golden,
    }
    assert len(golden) == 8
    (variant,) = manifest["variants"]
    assert variant["sha256"] == sha256_file(stock_bundle / "fp32.onnx")
    assert variant["bytes"] == (stock_bundle / "fp32.onnx").stat().st_size
    assert (variant["opset"], variant["precision"], variant["input"]) == (18, "fp32", "image")
    assert variant["parity"]["network"]["images"] == variant["parity"]["path"]["images"] == 16
    assert variant["parity"]["network"]["max_abs_diff"] <= 1e-3
    assert variant["parity"]["path"]["max_grey_levels"] <= 1
    assert variant["accuracy"] == {}
    assert len(manifest["labels"]) == 1000
    assert not list(stock_bundle.parent.glob(".*"))


def test_file_has_metadata_and_no_local_paths(stock_bundle: Path) -> None:
    model = onnx.load(stock_bundle / "fp32.onnx", load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert [entry.domain for entry in model.opset_import] == [""]
    properties = {entry.key: entry.value for entry in model.metadata_props}
    metadata = ModelMetadata.from_properties(properties)
    assert metadata is not None
    bundle = open_bundle(stock_bundle)
    assert metadata.labels == bundle.labels
    assert metadata.preprocessing == bundle.preprocessing
    assert metadata.run_id == bundle.run_id
    assert not re.search(
        rb"site-packages|/[\w.-]+/[\w./-]+\.py", (stock_bundle / "fp32.onnx").read_bytes()
    )
    assert all(
        tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer
    )


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8])
def test_batch_is_dynamic_and_probabilities_are_softmax(stock_bundle: Path, batch: int) -> None:
    classifier = open_classifier(stock_bundle)
    images = np.random.default_rng(batch).integers(0, 256, (batch, 50 + batch, 90, 3), np.uint8)
    outputs = classifier.run(images)
    logits, probabilities = outputs.logits, outputs.probabilities
    assert logits.shape == probabilities.shape == (batch, 1000)
    assert np.allclose(probabilities, torch.softmax(torch.from_numpy(logits), 1).numpy(), atol=1e-6)
    single = [classifier.run(image[None]).logits[0] for image in images]
    assert np.allclose(logits, single, atol=1e-3)


def test_golden_logits_match_pytorch(stock_bundle: Path, random_weights: Path) -> None:
    bundle = open_bundle(stock_bundle)
    model = load_stock_model(ARCHITECTURE, str(random_weights), IMAGE_SIZE)
    golden = bundle.load_golden()
    with torch.inference_mode():
        expected = np.concatenate(
            [
                model.model(torch.from_numpy(preprocess(image, bundle.preprocessing))).numpy()
                for image in golden.load_images()
            ]
        )
    assert np.allclose(golden.logits, expected, atol=1e-4)


def test_second_export_writes_equal_bytes(
    stock_bundle: Path, tmp_path: Path, random_weights: Path
) -> None:
    export_architecture(
        ARCHITECTURE,
        str(random_weights),
        ExportConfig(output=tmp_path / "again"),
        image_size=IMAGE_SIZE,
    )
    for path in stock_bundle.rglob("*"):
        if path.is_file():
            assert (
                path.read_bytes()
                == (tmp_path / "again" / path.relative_to(stock_bundle)).read_bytes()
            ), path.name


def test_tensor_input_leaves_preprocessing_out(
    tmp_path: Path, stock_bundle: Path, export: Any
) -> None:
    bundle = export(tmp_path / "tensor", input="tensor")
    model = onnx.load(bundle.directory.variant("fp32"))
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert not [node for node in model.graph.node if node.op_type in ("If", "Resize")]
    golden = bundle.load_golden()
    photo = golden.load_images()[0]
    expected = open_classifier(stock_bundle).classify(photo)
    probabilities = open_classifier(tmp_path / "tensor").classify(photo)
    assert np.allclose(expected, probabilities, atol=1e-3)
    cv2 = pytest.importorskip("cv2")
    network = cv2.dnn.readNetFromONNX(str(bundle.directory.variant("fp32")))
    network.setInput(preprocess(photo, bundle.preprocessing))
    assert np.allclose(network.forward("logits")[0], golden.logits[0], atol=1e-2), (
        "OpenCV must not fuse the gate into HardSwish"
    )


def test_user_photos_are_proof_and_golden_images(tmp_path: Path, export: Any) -> None:
    photos, generator = tmp_path / "photos", np.random.default_rng(0)
    photos.mkdir()
    for number in range(20):
        blots = Image.fromarray(generator.integers(0, 256, (5, 7, 3), np.uint8))
        blots.resize((131, 97), Image.Resampling.BICUBIC).save(photos / f"{number}.jpg", quality=95)
    bundle = export(tmp_path / "given", images=photos)
    parity = bundle.select_variant().parity
    assert parity.network.images == parity.path.images == 20
    assert parity.network.kind == bundle.manifest.golden.kind == "given"
    originals = {path.read_bytes() for path in photos.rglob("*.jpg")}
    assert all(path.read_bytes() in originals for path in bundle.load_golden().files)
    generated = export(tmp_path / "generated", images=photos, golden="generated")
    assert generated.manifest.golden.kind == "generated"
    assert all(path.read_bytes() not in originals for path in generated.load_golden().files)


def test_export_refuses_existing_output(tmp_path: Path, stock_bundle: Path, export: Any) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(stock_bundle, copy)
    with pytest.raises(BundleError, match="force=True"):
        export(copy)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="not a bundle"):
        export(tmp_path / "mine", force=True)
    assert (tmp_path / "mine/thesis.txt").exists()
    (copy / "README.md").write_text("stale")
    export(copy, force=True)
    assert "stale" not in (copy / "README.md").read_text()


def _damage(model: onnx.ModelProto, name_part: str) -> onnx.ModelProto:
    tensor = next(
        tensor
        for tensor in model.graph.initializer
        if name_part in tensor.name and tensor.name.endswith("weight")
    )
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.5, tensor.name))
    return model


def test_wrong_weights_fail_network_part_naming_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stock_bundle: Path, export: Any
) -> None:
    monkeypatch.setattr(
        exporter,
        "assemble",
        lambda *arguments: _damage(assemble.assemble(*arguments), "features.4"),
    )
    existing = tmp_path / "existing"
    shutil.copytree(stock_bundle, existing)
    for output, force in ((tmp_path / "new", False), (existing, True)):
        with pytest.raises(
            ParityError, match=r"network part.*The first module that differs is features\.4\b"
        ) as failure:
            export(output, force=force)
        assert "network_tolerance" in str(failure.value)
    # No partial files remain, and the existing bundle is complete.
    assert [path.name for path in tmp_path.iterdir()] == ["existing"]
    assert open_bundle(existing).variant_path(open_bundle(existing).select_variant())


def test_wrong_resize_fails_path_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export: Any
) -> None:
    def plain_resize(*arguments: object) -> onnx.ModelProto:
        model = assemble.assemble(*arguments)  # type: ignore[arg-type]
        shrink = next(node for node in model.graph.node if node.op_type == "If").attribute[1].g
        resize = next(node for node in shrink.node if node.op_type == "Resize")
        for attribute in resize.attribute:
            if attribute.name in ("antialias", "exclude_outside"):
                attribute.i = 0
        return model

    monkeypatch.setattr(exporter, "assemble", plain_resize)
    with pytest.raises(ParityError, match=r"path part \(pixels\).*grey levels at row"):
        export(tmp_path / "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_nan_logits_fail_the_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random_weights: Path
) -> None:
    model = load_stock_model(ARCHITECTURE, str(random_weights), IMAGE_SIZE)
    model.model.classifier[-1].bias.data[3] = float("nan")  # type: ignore[union-attr,index]
    monkeypatch.setattr(exporter, "load_stock_model", lambda *_: model)
    with pytest.raises(ParityError, match="nan"):
        export_architecture(
            ARCHITECTURE, "x", ExportConfig(output=tmp_path / "new"), image_size=IMAGE_SIZE
        )


def test_zero_tolerance_is_invalid_and_tiny_tolerance_fails(tmp_path: Path, export: Any) -> None:
    with pytest.raises(ConfigError, match="tolerance"):
        ExportConfig(network_tolerance=0)
    with pytest.raises(ParityError, match="first module that differs is features"):
        export(tmp_path / "new", network_tolerance=1e-12)


@pytest.mark.slow
def test_export_errors_name_the_option(tmp_path: Path, export: Any) -> None:
    with pytest.raises(ExportError, match="opset"):
        export(tmp_path / "new", opset=99)
    with pytest.raises(DataError, match="--images"):
        export(tmp_path / "new", images=tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_unreadable_images_stop_the_proof(tmp_path: Path, export: Any) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/broken.jpg").write_bytes(b"no photo")
    with pytest.raises(DataError, match=r"broken\.jpg"):
        export(tmp_path / "new", images=tmp_path / "photos")
