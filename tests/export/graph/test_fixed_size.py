"""The fixed-size variant: pixels as Pillow's, its proof, and its use by other commands."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image
from typer.testing import CliRunner

from edgetl.cli.app import create_app
from edgetl.core.artifacts.bundle import write_bundle_manifest
from edgetl.core.config.bench import BenchConfig
from edgetl.core.config.export import ExportConfig
from edgetl.core.config.loadgen import LoadgenConfig
from edgetl.core.errors import BenchError, BundleError, ConfigError, DecodeError
from edgetl.core.files import sha256_file
from edgetl.core.preprocessing import Interpolation, Preprocessing
from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.bench.runner import bench
from edgetl.device.loadgen.loadgen import loadgen
from edgetl.device.predict import predict
from edgetl.device.runtime.bundle import Bundle, open_bundle
from edgetl.device.runtime.classifier import open_classifier
from edgetl.device.runtime.preprocessing import resize_and_crop, resize_to
from edgetl.device.verify import verify
from edgetl.export.accuracy import AccuracyTest
from edgetl.export.golden import generate_images
from edgetl.export.graph.fixed_size import fixed_size_graph, resampling_matrix
from edgetl.export.parity.metrics import EvaluationImages
from edgetl.train.model.factory import load_stock_model
from tests.conftest import ARCHITECTURE, IMAGE_SIZE
from tests.helpers.graphs import quick_export

SIZE = (96, 128)
NAME = "fixed-96x128"
both_interpolations = pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
BRIEF = BenchProtocol(
    block_seconds=0.01, block_runs=10, window_seconds=0.005, window_runs=3, max_windows=3
)


@pytest.fixture(scope="module")
def generated_images(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    folder = tmp_path_factory.mktemp("images")
    return [np.asarray(Image.open(path)) for path in generate_images(folder, 4)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, random_weights: Path) -> Bundle:
    with pytest.MonkeyPatch.context() as patch:
        export = quick_export(tmp_path_factory, random_weights, patch)
        return export(tmp_path_factory.mktemp("fixed-size") / "bundle", fixed_size=SIZE)


def test_test_images_are_resized_to_the_fixed_size(bundle: Bundle, random_weights: Path) -> None:
    model = load_stock_model(ARCHITECTURE, str(random_weights), IMAGE_SIZE)
    files = bundle.load_golden().files
    assert {Image.open(file).size for file in files} != {(SIZE[1], SIZE[0])}
    images = EvaluationImages(files, [model.labels[0]] * len(files), "test")
    test = AccuracyTest(images, model.model, model.labels, model.preprocessing, "image")
    record = test.measure_file(bundle.directory.variant(NAME), SIZE)
    assert record is not None
    assert (record.split, record.images, record.flips) == ("test", 8, 0)


@pytest.mark.parametrize(
    "size",
    [
        (480, 640),
        (73, 73),
        (64, 64),
        (64, 200),
        (40, 31),
        (73, 500),
        (333, 517),
        (1200, 900),
        (75, 2000),
    ],
    ids=lambda size: f"{size[0]}x{size[1]}",
)
@both_interpolations
def test_pixels_equal_pillow_to_one_grey_level(
    generated_images: list[np.ndarray], size: tuple[int, int], interpolation: Interpolation
) -> None:
    preprocessing = replace(Preprocessing.for_image_size(64), interpolation=interpolation)
    model = fixed_size_graph(preprocessing, size, opset=18, ir_version=10)
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("cropped", onnx.TensorProto.FLOAT, ["batch", 3, 64, 64])
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    images = np.stack([resize_to(image, size) for image in generated_images])
    # Bicubic sums of black and white pixels are often below 0 or above 255.
    images = np.concatenate([images, np.where(images > 127, 255, 0).astype(np.uint8)])
    (cropped,) = session.run(["cropped"], {"image": images})
    expected = np.stack([resize_and_crop(image, preprocessing) for image in images])
    levels = np.abs(cropped - expected.transpose(0, 3, 1, 2))
    assert levels.max() <= 1
    assert (levels > 0).mean() < 0.02


@pytest.mark.parametrize(("old", "new"), [(640, 341), (256, 256), (31, 73), (1, 64), (5000, 64)])
@both_interpolations
def test_resampling_weights_sum_to_one_and_equal_pillow(
    old: int, new: int, interpolation: Interpolation
) -> None:
    matrix = resampling_matrix(old, new, 0, new, interpolation)
    assert matrix.shape == (new, old)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-5)
    row = np.random.default_rng(0).random((1, old)).astype(np.float32)
    expected = np.asarray(
        Image.fromarray(row, mode="F").resize((new, 1), Image.Resampling[interpolation.upper()])
    )
    np.testing.assert_allclose(row @ matrix.T, expected, atol=1e-5)


def test_file_has_constant_shapes_and_no_control_flow(bundle: Bundle) -> None:
    model = onnx.load(bundle.variant_path(bundle.select_variant(NAME)))
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"If", "Loop", "Scan", "Resize", "Shape", "Slice"}
    dims = [
        dim.dim_value or dim.dim_param for dim in model.graph.input[0].type.tensor_type.shape.dim
    ]
    assert dims == ["batch", 96, 128, 3]


def test_fixed_size_variant_is_proven_but_not_recommended(bundle: Bundle) -> None:
    reopened = open_bundle(bundle.directory.path)
    assert reopened == bundle
    assert [variant.name for variant in reopened.variants] == ["fp32", NAME]
    variant = reopened.select_variant(NAME)
    assert variant.size == SIZE
    assert reopened.select_variant("fp32").size is None
    assert variant.parity.path.max_grey_levels <= 1
    assert variant.parity.path.images == variant.parity.network.images > 0
    assert reopened.manifest.recommended == "fp32"
    assert "128 x 96 pixels only" in reopened.directory.model_card.read_text()
    golden = reopened.load_golden()
    assert golden.logits_for(variant).shape == golden.logits.shape
    assert not np.array_equal(golden.logits_for(variant), golden.logits)
    assert {image.shape for image in golden.load_images(variant)} == {(96, 128, 3)}


def test_verify_and_predict_use_fixed_size_logits(bundle: Bundle, tmp_path: Path) -> None:
    results = [(result.variant, result.passed) for result in verify(bundle)]
    assert results == [("fp32", True), (NAME, True)]
    photo = resize_to(bundle.load_golden().load_images()[0], SIZE)
    Image.fromarray(photo).save(tmp_path / "right.png")
    Image.fromarray(photo[:-1]).save(tmp_path / "wrong.png")
    right, wrong = predict(bundle, sorted(tmp_path.glob("*.png")), 1, NAME)
    (expected,) = predict(bundle, tmp_path / "right.png", variant="fp32")
    assert right.error is None
    assert right.top_labels[0][0] == expected.top_labels[0][0]
    assert wrong.top_labels == ()
    assert "wrong.png: The image must have 128 x 96 pixels for this variant, got 128 x 95." in (
        wrong.error or ""
    )
    with pytest.raises(DecodeError, match="must have 128 x 96 pixels"):
        open_classifier(bundle, NAME).classify(photo[:-1])


def update_golden_hash(bundle: Bundle) -> None:
    manifest = bundle.manifest
    logits = replace(manifest.golden.logits, sha256=sha256_file(bundle.directory.golden_logits))
    golden = replace(manifest.golden, logits=logits)
    write_bundle_manifest(bundle.directory, replace(manifest, golden=golden))


def test_verify_detects_wrong_fixed_size_logits(bundle: Bundle, tmp_path: Path) -> None:
    bundle = open_bundle(shutil.copytree(bundle.directory.path, tmp_path / "copy"))
    path = bundle.directory.golden_logits
    with np.load(path) as golden:
        arrays = dict(golden)
    np.savez(path, **{**arrays, f"logits_{NAME}": arrays["logits"] + 5})
    update_golden_hash(bundle)
    results = verify(open_bundle(bundle.directory.path))
    assert [(result.variant, result.passed) for result in results] == [
        ("fp32", True),
        (NAME, False),
    ]
    np.savez(path, files=arrays["files"], logits=arrays["logits"])
    update_golden_hash(bundle)
    with pytest.raises(BundleError, match=f"has no array 'logits_{NAME}'"):
        verify(open_bundle(bundle.directory.path))


def test_bench_measures_fixed_size_in_scope_model_only(bundle: Bundle, tmp_path: Path) -> None:
    config = BenchConfig(
        bundle.directory.path, rounds=2, threads=(1,), output=tmp_path / "result.json"
    )
    result = bench(config, protocol=BRIEF)
    rows = {(row.variant, row.scope): row for row in result.rows}
    assert rows.keys() == {("fp32", "model"), ("fp32", "file"), (NAME, "model")}
    assert all(row.gate.passed and row.rounds for row in result.rows)
    assert rows[NAME, "model"].input == "uint8 1x96x128x3"
    assert not any(rows[NAME, "model"].id in pair for pair in result.pairs)
    assert any("not measured for fixed-96x128" in note for note in result.notes)
    with pytest.raises(BenchError, match="needs scope model"):
        bench(
            replace(config, scopes=("file",), variants=(NAME,), output=tmp_path / "other.json"),
            protocol=BRIEF,
        )


def test_loadgen_refuses_fixed_size_variant(bundle: Bundle) -> None:
    pytest.importorskip("mlperf_loadgen")
    with pytest.raises(BenchError, match="takes images of one size only"):
        loadgen(LoadgenConfig(bundle.directory.path, "single-stream", variant=NAME))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fixed_size": (8, 640)}, "sides of 16 to 8192 pixels, got 8x640"),
        ({"fixed_size": (480, 640), "input": "tensor"}, "remove input tensor"),
    ],
)
def test_export_config_rejects_invalid_fixed_size(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExportConfig(**options)


@pytest.mark.parametrize("text", ["640", "640*480", "x", "-1x5", "480x640x3"])
def test_command_rejects_malformed_fixed_size(text: str) -> None:
    result = CliRunner().invoke(create_app("export"), ["export", "resnet18", "--fixed-size", text])
    assert isinstance(result.exception, ConfigError)
    assert "must be HEIGHTxWIDTH in pixels" in str(result.exception)
