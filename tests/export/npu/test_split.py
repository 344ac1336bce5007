"""The variants for NPUs in a bundle: their files, their proof, and use on the device."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from edgetl.core.artifacts.bundle import read_bundle_manifest
from edgetl.core.config.bench import BenchConfig
from edgetl.core.errors import BundleError, ExportError
from edgetl.core.files import sha256_file
from edgetl.core.paths import BundleDirectory
from edgetl.device.bench.target import find_target
from edgetl.device.hardware.info import has_int8_dot_product
from edgetl.device.runtime.bundle import Bundle
from edgetl.device.runtime.classifier import open_classifier, open_verified_classifier
from edgetl.device.runtime.preprocessing import resize_and_crop
from edgetl.device.runtime.session_choice import SessionOptions
from edgetl.device.verify import verify
from edgetl.export.model_card import model_card
from edgetl.export.npu import split
from edgetl.export.npu.network import find_dynamic_values
from edgetl.export.npu.search import KEPT_OPERATORS
from tests.helpers.graphs import Export, quick_export

NAMES = ("npu-fp32", "npu-int8")


@pytest.fixture(scope="module")
def module_export(
    tmp_path_factory: pytest.TempPathFactory, random_weights: Path
) -> Iterator[Export]:
    with pytest.MonkeyPatch.context() as patch:
        yield quick_export(tmp_path_factory, random_weights, patch)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(24):
        size = (97 + 11 * (number % 5), 60 + 13 * (number % 7))
        blots = Image.fromarray(generator.integers(0, 256, (5, 7, 3), np.uint8))
        blots.resize(size, Image.Resampling.BICUBIC).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, photos: Path, module_export: Export) -> Bundle:
    return module_export(tmp_path_factory.mktemp("split") / "bundle", photos, split=True)


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def test_bundle_has_three_hashed_files_for_each_network(bundle: Bundle) -> None:
    assert [variant.name for variant in bundle.variants] == ["fp32", *NAMES]
    assert bundle.manifest.recommended == "fp32"
    for name in NAMES:
        variant = bundle.select_variant(name)
        files = [f"{name}.onnx", f"{name}.preprocessing.onnx", f"{name}.postprocessing.onnx"]
        assert [record.file for record in variant.files] == files
        for record in variant.files:
            assert record.sha256 == sha256_file(bundle.directory.path / record.file)
        assert bundle.variant_path(variant).name == f"{name}.onnx"
        assert variant.parity.path.images == 24
        assert variant.total_bytes == sum(record.bytes or 0 for record in variant.files)
        assert variant.runs_on("onnxruntime")
        assert not variant.runs_on("openvino")
    assert bundle.select_variant("npu-fp32").parity.path.max_abs_diff < 0.05
    assert bundle.select_variant("npu-int8").parity.path.max_grey_levels in (0, 1)
    assert read_bundle_manifest(bundle.directory) == bundle.manifest


@pytest.mark.parametrize("name", NAMES)
def test_network_file_is_static_and_without_control_flow(bundle: Bundle, name: str) -> None:
    model = onnx.load(bundle.directory.variant(name))
    onnx.checker.check_model(model, full_check=True)
    assert find_dynamic_values(model) == []
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"If", "Loop", "Scan", "Resize", "Softmax", "TopK", "Shape", "Flatten"}
    assert {node.domain for node in model.graph.node} == {""}


@pytest.mark.parametrize("name", NAMES)
def test_session_equals_the_three_files_run_by_hand(
    bundle: Bundle, photos: Path, name: str
) -> None:
    folder = bundle.directory.path
    options = onnxruntime.SessionOptions()
    if not has_int8_dot_product():  # 8-bit weights overflow in onnxruntime's kernels
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    before, network, after = (
        onnxruntime.InferenceSession(str(folder / f"{name}{part}.onnx"), options)
        for part in (".preprocessing", "", ".postprocessing")
    )
    classifier = open_classifier(bundle, name)
    for path in sorted(photos.iterdir())[:3]:
        image = np.asarray(Image.open(path))
        (inputs,) = before.run(None, {"image": image[None]})
        names = [output.name for output in network.get_outputs()]
        values = dict(
            zip(names, network.run(None, {network.get_inputs()[0].name: inputs}), strict=True)
        )
        feed = {node.name: values[node.name] for node in after.get_inputs()}
        (probabilities,) = after.run(["probabilities"], feed)
        outputs = classifier.run(image[None])
        assert np.array_equal(outputs.logits, values["logits"])
        assert np.array_equal(outputs.probabilities, probabilities)
    assert inputs.dtype == (np.uint8 if name == "npu-int8" else np.float32)


def test_preprocessing_file_crops_as_pillow_does(bundle: Bundle, photos: Path) -> None:
    session = onnxruntime.InferenceSession(
        str(bundle.directory.path / "npu-int8.preprocessing.onnx")
    )
    for path in photos.iterdir():
        image = np.asarray(Image.open(path))
        (crop,) = session.run(None, {"image": image[None]})
        expected = resize_and_crop(image, bundle.preprocessing).transpose(2, 0, 1)
        assert np.abs(crop[0].astype(int) - expected).max() <= 1


def test_float_network_equals_the_recommended_variant(bundle: Bundle, photos: Path) -> None:
    plain, static = open_classifier(bundle, "fp32"), open_classifier(bundle, "npu-fp32")
    images = np.stack([np.asarray(Image.open(photos / "00.png"))] * 3)
    images[1] = images[1][::-1]
    images[2] = 255 - images[2]
    expected, outputs = plain.run(images), static.run(images)
    assert np.abs(outputs.logits - expected.logits).max() < 1e-3
    assert outputs.probabilities.shape == (3, 1000)
    single = [static.run(image[None]).logits[0] for image in images]
    assert np.array_equal(outputs.logits, np.stack(single))


def test_verify_checks_split_variants(bundle: Bundle) -> None:
    results = {result.variant: result for result in verify(bundle, NAMES, threads=1)}
    assert set(results) == set(NAMES)
    assert all(result.passed for result in results.values()), results


def test_changed_or_missing_part_is_refused(copy: Path) -> None:
    part = copy / "npu-int8.postprocessing.onnx"
    part.write_bytes(part.read_bytes() + b"\0")
    with pytest.raises(BundleError, match=r"SHA-256 of .*postprocessing"):
        open_classifier(copy, "npu-int8")
    part.unlink()
    with pytest.raises(BundleError, match=r"postprocessing.onnx is missing"):
        open_verified_classifier(copy, SessionOptions("npu-int8"))
    with pytest.raises(BundleError, match=r"needs .* in the same folder"):
        open_classifier(copy / "npu-int8.onnx")
    assert open_classifier(copy, "npu-fp32")


def test_manifest_without_the_parts_is_refused(copy: Path) -> None:
    directory = BundleDirectory(copy)
    text = directory.manifest.read_text()
    directory.manifest.write_text(text.replace("npu-int8.preprocessing", "npu-fp32.preprocessing"))
    with pytest.raises(BundleError):
        open_classifier(copy, "npu-int8")


def test_bench_measures_split_variants_on_the_cpu_by_name(bundle: Bundle) -> None:
    target = find_target(BenchConfig(str(bundle.directory.path)), [1])
    assert [case.variant for case in target.cases] == ["fp32"]
    assert any("npu-fp32,npu-int8 is not measured" in note for note in target.notes)
    config = BenchConfig(str(bundle.directory.path), variants=("npu-int8",))
    (case,) = find_target(config, [1]).cases
    assert (case.variant, case.source.precision) == ("npu-int8", "int8")


def test_card_says_that_nothing_ran_on_an_npu(bundle: Bundle) -> None:
    card = model_card(bundle.manifest)
    assert "nothing was run on an NPU" in card
    # NNAPI's list lacks hard activations, which the search may keep as single operators.
    providers = "QNN, VitisAI, RKNN" if KEPT_OPERATORS in card else "QNN, VitisAI, RKNN, NNAPI"
    assert f"- `npu-int8.onnx`, {providers}: all" in card
    assert "CoreML: " in card
    assert "npu-int8.postprocessing.onnx" in card


def test_wrong_float_network_writes_no_bundle(
    tmp_path: Path, photos: Path, module_export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        split, "rewrite_operators", lambda network, operators: _scale_last_layer(network)
    )
    with pytest.raises(ExportError, match=r"npu-fp32.onnx differ from those of fp32.onnx by"):
        module_export(tmp_path / "wrong", photos, split=True)
    assert not (tmp_path / "wrong").exists()


def _scale_last_layer(network: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(network)
    last = [node for node in copy.graph.node if node.op_type == "Gemm"][-1]
    for value in copy.graph.initializer:
        if value.name == last.input[1]:
            scaled = onnx.numpy_helper.to_array(value) * np.float32(1.5)
            value.CopyFrom(onnx.numpy_helper.from_array(scaled, value.name))
    return copy
