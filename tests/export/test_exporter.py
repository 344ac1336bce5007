"""Export as a whole: what a bundle holds, and that nothing unproven or half-written ever stays."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image

from edgetl.core.config.export import ExportConfig
from edgetl.core.errors import BundleError, ConfigError, DataError, ExportError, ParityError
from edgetl.core.files import sha256_file
from edgetl.device.runtime.bundle import open_bundle, read_metadata
from edgetl.device.runtime.classifier import open_classifier
from edgetl.device.runtime.preprocessing import preprocess
from edgetl.export import exporter
from edgetl.export.exporter import export_architecture
from edgetl.export.graph import assemble
from edgetl.train.model.factory import load_stock_model
from tests.conftest import ARCHITECTURE, IMAGE_SIZE


def test_bundle_holds_what_the_manifest_says(stock_bundle: Path) -> None:
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


def test_file_explains_itself_and_holds_no_trace_of_the_machine(stock_bundle: Path) -> None:
    model = onnx.load(stock_bundle / "fp32.onnx", load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    metadata = read_metadata({entry.key: entry.value for entry in model.metadata_props})
    bundle = open_bundle(stock_bundle)
    assert metadata["labels"] == bundle.labels
    assert metadata["preprocessing"] == bundle.preprocessing.to_json()
    assert metadata["run_id"] == bundle.run_id
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
    logits, probabilities = classifier.run(images)
    assert logits.shape == probabilities.shape == (batch, 1000)
    assert np.allclose(probabilities, torch.softmax(torch.from_numpy(logits), 1).numpy(), atol=1e-6)
    alone = [classifier.run(image[None])[0][0] for image in images]
    assert np.allclose(logits, alone, atol=1e-3)


def test_golden_logits_are_pytorchs(stock_bundle: Path, random_weights: Path) -> None:
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


def test_exporting_twice_gives_equal_bytes(
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


def test_tensor_input(tmp_path: Path, stock_bundle: Path, export) -> None:  # type: ignore[no-untyped-def]
    bundle = export(tmp_path / "tensor", input="tensor")
    model = onnx.load(bundle.directory.variant("fp32"))
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert not [node for node in model.graph.node if node.op_type in ("If", "Resize")]
    photo = bundle.golden().images()[0]
    inside, outside = (
        open_classifier(stock_bundle).classify(photo),
        open_classifier(tmp_path / "tensor").classify(photo),
    )
    assert np.allclose(inside, outside, atol=1e-3)
    cv2 = pytest.importorskip("cv2")
    network = cv2.dnn.readNetFromONNX(str(bundle.directory.variant("fp32")))
    network.setInput(preprocess(photo, bundle.preprocessing))
    assert np.allclose(network.forward("logits")[0], bundle.golden().logits[0], atol=1e-2), (
        "OpenCV takes no gate for HardSwish"
    )


def test_given_photos_are_what_it_is_proven_on(tmp_path: Path, export) -> None:  # type: ignore[no-untyped-def]
    photos, generator = tmp_path / "photos", np.random.default_rng(0)
    photos.mkdir()
    for number in range(20):
        blots = Image.fromarray(generator.integers(0, 256, (5, 7, 3), np.uint8))
        blots.resize((131, 97), Image.Resampling.BICUBIC).save(photos / f"{number}.jpg", quality=95)
    bundle = export(tmp_path / "given", images=photos)
    assert bundle.variant().parity["network"]["images"] == 20
    assert (
        bundle.variant().parity["network"]["kind"] == bundle.manifest["golden"]["kind"] == "given"
    )
    originals = {path.read_bytes() for path in photos.rglob("*.jpg")}
    assert all(path.read_bytes() in originals for path in bundle.golden().files)
    generated = export(tmp_path / "generated", images=photos, golden="generated")
    assert generated.manifest["golden"]["kind"] == "generated"
    assert all(path.read_bytes() not in originals for path in generated.golden().files)


def test_existing_places_are_kept(tmp_path: Path, stock_bundle: Path, export) -> None:  # type: ignore[no-untyped-def]
    copy = tmp_path / "bundle"
    shutil.copytree(stock_bundle, copy)
    with pytest.raises(BundleError, match="--force"):
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


def test_wrong_weights_fail_the_network_part_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stock_bundle: Path, export
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(
        exporter,
        "assemble",
        lambda *arguments: _damage(assemble.assemble(*arguments), "features.4"),
    )
    kept = tmp_path / "kept"
    shutil.copytree(stock_bundle, kept)
    for output, force in ((tmp_path / "new", False), (kept, True)):
        with pytest.raises(
            ParityError, match=r"network part.*The first module that differs is features\.4\b"
        ) as failure:
            export(output, force=force)
        assert "--tolerance" in str(failure.value)
    # Nothing half-written stays, and what was there before is still whole.
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert open_bundle(kept).variant_path(open_bundle(kept).select_variant())


def test_wrong_resize_fails_the_path_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export
) -> None:  # type: ignore[no-untyped-def]
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


def test_answers_that_are_not_numbers_never_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random_weights: Path
) -> None:
    model = load_stock_model(ARCHITECTURE, str(random_weights), IMAGE_SIZE)
    model.model.classifier[-1].bias.data[3] = float("nan")  # type: ignore[union-attr,index]
    monkeypatch.setattr(exporter, "load_stock_model", lambda *_: model)
    with pytest.raises(ParityError, match="nan"):
        export_architecture(ARCHITECTURE, "x", ExportConfig(output=tmp_path / "new"))


def test_tolerance_zero_is_refused_and_impossible_ones_fail(tmp_path: Path, export) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match="tolerance"):
        ExportConfig(network_tolerance=0)
    with pytest.raises(ParityError, match="first module that differs is features"):
        export(tmp_path / "new", network_tolerance=1e-12)


def test_refusals_of_the_exporter_are_told(tmp_path: Path, export) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ExportError, match="opset"):
        export(tmp_path / "new", opset=99)
    with pytest.raises(DataError, match="--images"):
        export(tmp_path / "new", images=tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_images_that_cannot_be_read_stop_the_proof(tmp_path: Path, export) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/broken.jpg").write_bytes(b"no photo")
    with pytest.raises(DataError, match=r"broken\.jpg"):
        export(tmp_path / "new", images=tmp_path / "photos")
