"""Damaged, edited and malicious bundles are rejected with a BundleError."""

from __future__ import annotations

import io
import json
import random
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgetl.core.errors import BundleError, DecodeError, EdgetlError
from edgetl.core.files import sha256_file
from edgetl.device.runtime.bundle import open_bundle
from edgetl.device.runtime.classifier import Classifier, open_classifier, open_verified_classifier
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.onnx_file import OnnxFileError, read_onnx_file
from edgetl.device.runtime.session import create_session
from edgetl.device.runtime.sessions import onnxruntime_session
from edgetl.device.runtime.sessions.onnxruntime_session import OnnxRuntimeSession
from edgetl.device.runtime.time_limit import run_with_timeout
from edgetl.device.verify import verify
from tests.helpers.bundles import (
    CONTRACT,
    LABELS,
    colour_logits,
    colour_model,
    write_bundle,
    write_pictures,
)
from tests.helpers.confidence import add_confidence
from tools.checks.fuzz.mutation import mutate_json

RUN_ID = "0123456789ab"


def model_with_metadata() -> onnx.ModelProto:
    model = colour_model()
    metadata = {
        "labels": LABELS,
        "preprocessing": CONTRACT.to_json(),
        "input": "image",
        "run_id": RUN_ID,
    }
    onnx.helper.set_model_props(
        model, {f"edgetl.{key}": json.dumps(value) for key, value in metadata.items()}
    )
    return model


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    paths = write_pictures(folder / "golden")
    return write_bundle(
        folder,
        {"fp32": model_with_metadata()},
        np.stack([colour_logits(load_image(path)) for path in paths]),
    )


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = bundle / "bundle.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def replace_archive(bundle: Path, content: bytes) -> None:
    path = bundle / "golden/golden.npz"
    path.write_bytes(content)
    edit_manifest(
        bundle, lambda manifest: manifest["golden"]["logits"].update(sha256=sha256_file(path))
    )


def to_npz(**arrays: NDArray[Any]) -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def read_logits(bundle: Path) -> NDArray[np.float32]:
    logits: NDArray[np.float32] = np.load(bundle / "golden/golden.npz")["logits"]
    return logits


def test_intact_bundle_is_read(bundle: Path) -> None:
    open_verified_classifier(bundle)
    opened = open_bundle(bundle)
    assert all(result.passed for result in verify(opened))
    assert repr(opened) == f"Bundle({str(bundle)!r}, 'colours', 2 classes, fp32)"
    assert repr(opened.manifest) == "BundleManifest('colours', 2 classes, fp32)"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("labels", lambda manifest: manifest["labels"].reverse()),
        ("preprocessing", lambda manifest: manifest["preprocessing"].update(mean=[0.5, 0.5, 0.5])),
        ("run", lambda manifest: manifest["run"].update(id="ffffffffffff")),
        ("input", lambda manifest: manifest["variants"][0].update(input="tensor")),
        (
            "temperature",
            lambda manifest: manifest["variants"][0]["calibration"].update(temperature=1.7),
        ),
        ("temperature", lambda manifest: manifest["variants"][0].pop("calibration")),
        ("unknown", lambda manifest: manifest["variants"][0].pop("unknown")),
        (
            "unknown",
            lambda manifest: manifest["variants"][0]["unknown"]["detector"].update(method="knn"),
        ),
        (
            "prediction sets",
            lambda manifest: manifest["variants"][0]["prediction_sets"][0].update(coverage=0.99),
        ),
    ],
)
def test_bundle_rejects_metadata_mismatch(
    bundle: Path, name: str, change: Callable[[dict[str, Any]], Any]
) -> None:
    add_confidence(bundle, threshold=0.0, temperature=1.5)
    open_verified_classifier(bundle)
    edit_manifest(bundle, change)
    with pytest.raises(BundleError, match=f"differ in {name}"):
        open_verified_classifier(bundle)
    with pytest.raises(BundleError, match=f"differ in {name}"):
        verify(open_bundle(bundle))


def test_golden_archive_rejects_label_mismatch(bundle: Path) -> None:
    logits = read_logits(bundle)
    replace_archive(bundle, to_npz(logits=logits, labels=np.array(LABELS)))
    open_verified_classifier(bundle)
    replace_archive(bundle, to_npz(logits=logits, labels=np.array(LABELS[::-1])))
    with pytest.raises(BundleError, match="or their order, do not match"):
        open_verified_classifier(bundle)


@pytest.mark.parametrize("scores", [np.zeros(3), np.zeros((4, 1)), np.full(4, np.nan), ["a"] * 4])
def test_golden_archive_rejects_invalid_unknown_scores(bundle: Path, scores: Any) -> None:
    add_confidence(bundle, threshold=0.0)
    arrays = dict(np.load(bundle / "golden/golden.npz"))
    assert arrays["unknown_score_fp32"].shape == (4,)
    replace_archive(bundle, to_npz(**{**arrays, "unknown_score_fp32": np.array(scores)}))
    with pytest.raises(BundleError, match=r"golden\.npz contains unknown_score_fp32"):
        open_verified_classifier(bundle)


def test_golden_archive_without_unknown_scores_is_read(bundle: Path) -> None:
    add_confidence(bundle, threshold=0.0)
    replace_archive(bundle, to_npz(logits=read_logits(bundle)))
    open_verified_classifier(bundle)
    assert open_bundle(bundle).load_golden().unknown_scores == {"fp32": None}


@pytest.mark.parametrize("temperature", [0, -1.5])
def test_bundle_rejects_temperature_of_zero_or_less(bundle: Path, temperature: float) -> None:
    add_confidence(bundle, threshold=0.0)
    edit_manifest(
        bundle,
        lambda manifest: manifest["variants"][0]["calibration"].update(temperature=temperature),
    )
    with pytest.raises(BundleError, match="the temperature must be above 0"):
        open_bundle(bundle)


def test_bundle_rejects_external_data(bundle: Path) -> None:
    model = onnx.load(bundle / "fp32.onnx")
    for tensor in model.graph.initializer:
        tensor.raw_data = onnx.numpy_helper.to_array(tensor).tobytes()
        tensor.ClearField("float_data")
    onnx.save(
        model,
        bundle / "fp32.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    edit_manifest(
        bundle,
        lambda manifest: manifest["variants"][0].update(sha256=sha256_file(bundle / "fp32.onnx")),
    )
    assert read_onnx_file(bundle / "fp32.onnx").has_external_data
    with pytest.raises(BundleError, match="stores weights in other files"):
        open_verified_classifier(bundle)


def test_read_onnx_file_finds_external_data_in_subgraphs(tmp_path: Path) -> None:
    tensor = onnx.TensorProto(
        name="w", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL
    )  # type: ignore[call-arg]
    tensor.external_data.add(key="location", value="elsewhere")
    constant = onnx.helper.make_node("Constant", [], ["c"])
    constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR, t=tensor)
    branch = onnx.helper.make_graph([constant], "branch", [], [])
    node = onnx.helper.make_node(
        "If",
        ["x"],
        ["y"],
        then_branch=branch,
        else_branch=onnx.helper.make_graph([], "none", [], []),
    )
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "main", [], []))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert read_onnx_file(tmp_path / "m.onnx").has_external_data
    then_branch = next(
        attribute for attribute in model.graph.node[0].attribute if attribute.name == "then_branch"
    )
    then_branch.g.node[0].attribute[0].t.ClearField("data_location")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert not read_onnx_file(tmp_path / "m.onnx").has_external_data


def test_read_onnx_file_matches_onnx_metadata(bundle: Path) -> None:
    model = onnx.load(bundle / "fp32.onnx")
    assert read_onnx_file(bundle / "fp32.onnx").metadata == {
        entry.key: entry.value for entry in model.metadata_props
    }


def test_read_onnx_file_reads_or_rejects_any_bytes(tmp_path: Path) -> None:
    original = model_with_metadata().SerializeToString()
    generator = random.Random(0)
    path = tmp_path / "m.onnx"
    for _ in range(500):
        is_truncated = generator.random() < 0.3
        length = generator.randrange(len(original)) if is_truncated else len(original)
        content = bytearray(original[:length])
        for _ in range(generator.randint(1, 4)):
            if content:
                content[generator.randrange(len(content))] = generator.randrange(256)
        path.write_bytes(content)
        try:
            read_onnx_file(path)
        except OnnxFileError:
            continue


@pytest.mark.parametrize("tolerance", [0, -1, 1e9, 50.0])
def test_bundle_rejects_out_of_range_tolerance(bundle: Path, tolerance: float) -> None:
    edit_manifest(bundle, lambda manifest: manifest["golden"].update(tolerance=tolerance))
    with pytest.raises(BundleError, match="it would accept wrong logits"):
        open_verified_classifier(bundle)
    edit_manifest(bundle, lambda manifest: manifest["golden"].update(tolerance=0.05))
    edit_manifest(
        bundle,
        lambda manifest: manifest["variants"][0]["parity"]["path"].update(tolerance=tolerance),
    )
    with pytest.raises(BundleError, match="it would accept wrong logits"):
        open_verified_classifier(bundle)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999", '"0.05"', "null"])
def test_bundle_rejects_non_finite_tolerance(bundle: Path, text: str) -> None:
    path = bundle / "bundle.json"
    path.write_text(path.read_text().replace('"tolerance": 0.05', f'"tolerance": {text}'))
    with pytest.raises(BundleError):
        open_verified_classifier(bundle)


def broken_archive(bundle: Path, name: str) -> bytes:
    logits = read_logits(bundle)
    original = to_npz(logits=logits)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (10**9, 10**6)}
    )
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("logits.npy", header.getvalue())
    makers: dict[str, Callable[[], bytes]] = {
        "pickled": lambda: to_npz(logits=np.array([{"a": 1}], dtype=object)),
        "truncated": lambda: original[: len(original) // 2],
        "empty": lambda: b"",
        "without logits": lambda: to_npz(files=np.array(["a"])),
        "other shape": lambda: to_npz(logits=logits.T),
        "text": lambda: to_npz(logits=np.full(logits.shape, "a")),
        "not finite": lambda: to_npz(logits=np.full_like(logits, np.nan)),
        "random bytes": lambda: b"PK\x03\x04" + bytes(100),
        "huge shape": lambda: bomb.getvalue(),
        "many zeros": lambda: to_npz(logits=np.zeros((20_000, 2_000), np.float32)),
        "huge labels": lambda: to_npz(logits=logits, labels=np.array(["a", "b" * 10_000_000])),
    }
    return makers[name]()


@pytest.mark.parametrize(
    "name",
    [
        "pickled", "truncated", "empty", "without logits", "other shape", "text", "not finite",
        "random bytes", "huge shape", "many zeros", "huge labels",
    ],
)  # fmt: skip
def test_golden_archive_checks_arrays_before_reading(bundle: Path, name: str) -> None:
    replace_archive(bundle, broken_archive(bundle, name))
    tracemalloc.start()
    try:
        with pytest.raises(BundleError, match=r"golden\.npz"):
            open_verified_classifier(bundle)
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("seed", range(4))
def test_bundle_rejects_manifest_with_wrong_types(bundle: Path, seed: int) -> None:
    add_confidence(bundle, threshold=0.0)
    generator = random.Random(seed)
    path = bundle / "bundle.json"
    manifest = json.loads(path.read_text())
    accepted_count = 0
    for _ in range(60):
        path.write_text(json.dumps(mutate_json(manifest, generator)))
        try:
            open_verified_classifier(bundle)
            opened = open_bundle(bundle)
            opened.companion_files()
            accepted_count += 1
        except (BundleError, DecodeError):
            continue
    assert accepted_count < 60


def test_bundle_rejects_manifest_without_golden_images(bundle: Path) -> None:
    edit_manifest(bundle, lambda manifest: manifest["golden"].update(images=[]))
    with pytest.raises(BundleError, match="no golden images"):
        open_bundle(bundle)


def test_classifier_rejects_malformed_metadata(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for key, value in {
        "labels": "5",
        "preprocessing": "[]",
        "input": '"video"',
        "labels ": "{",
        "run_id": "{",
        "temperature": "0",
        "temperature ": '"1"',
        "unknown": '{"method": "magic", "known_share": 0.95}',
        "prediction_sets": '[{"coverage": 1.5, "min_probability": 0.1}]',
        "prediction_sets ": '[{"coverage": 0.95, "min_probability": NaN}]',
    }.items():
        model = model_with_metadata()
        props = {entry.key: entry.value for entry in model.metadata_props} | {
            f"edgetl.{key.strip()}": value
        }
        onnx.helper.set_model_props(model, props)
        path.write_bytes(model.SerializeToString())
        with pytest.raises(BundleError):
            open_classifier(path)


def test_classifier_rejects_metadata_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model_with_metadata().SerializeToString().replace(b"cat", b"\xff\xfe\xfd"))
    with pytest.raises(BundleError, match="not UTF-8"):
        open_classifier(path)


def test_classifier_rejects_wrong_output_or_input(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(colour_model().SerializeToString())
    extra_label = Classifier(
        OnnxRuntimeSession(create_session(path)), [*LABELS, "bird"], CONTRACT, "image"
    )
    with pytest.raises(BundleError, match=r"must have shape \(1, 3\)"):
        extra_label.classify(np.zeros((40, 40, 3), np.uint8))
    tensor_input = Classifier(OnnxRuntimeSession(create_session(path)), LABELS, CONTRACT, "tensor")
    with pytest.raises(BundleError, match="cannot be run"):
        tensor_input.classify(np.zeros((40, 40, 3), np.uint8))


def endless_model() -> onnx.ModelProto:
    """Return `colour_model` with an endless loop before its output."""
    body = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Identity", ["condition"], ["next_condition"]),
            onnx.helper.make_node("Identity", ["value"], ["next_value"]),
        ],
        "body",
        [
            onnx.helper.make_tensor_value_info("number", onnx.TensorProto.INT64, []),
            onnx.helper.make_tensor_value_info("condition", onnx.TensorProto.BOOL, []),
            onnx.helper.make_tensor_value_info("value", onnx.TensorProto.FLOAT, None),
        ],
        [
            onnx.helper.make_tensor_value_info("next_condition", onnx.TensorProto.BOOL, []),
            onnx.helper.make_tensor_value_info("next_value", onnx.TensorProto.FLOAT, None),
        ],
    )
    model = model_with_metadata()
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "always"))
    nodes = list(model.graph.node)
    scores = next(node for node in nodes if "scores" in node.input)
    scores.input[list(scores.input).index("scores")] = "loop_output"
    del model.graph.node[:]
    loop = onnx.helper.make_node("Loop", ["", "always", "scores"], ["loop_output"], body=body)
    model.graph.node.extend([*nodes[:3], loop, *nodes[3:]])
    onnx.checker.check_model(model)
    return model


def test_endless_model_times_out(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bundle(bundle, {"fp32": endless_model()}, read_logits(bundle))
    monkeypatch.setattr(
        onnxruntime_session,
        "run_with_timeout",
        lambda session, outputs, feed: run_with_timeout(session, outputs, feed, 1.0),
    )
    with pytest.raises(BundleError, match="timed out after 1 seconds"):
        open_verified_classifier(bundle)


def test_bundle_with_ten_thousand_classes(tmp_path: Path) -> None:
    labels = [f"class {number}" for number in range(10_000)]
    model = colour_model()
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(2, len(labels))).astype(np.float32)
    bias = np.zeros(len(labels), np.float32)
    for name in ("weight", "bias"):
        model.graph.initializer.remove(
            next(tensor for tensor in model.graph.initializer if tensor.name == name)
        )
    channel_weights = np.concatenate([weight, weight[:1]])
    model.graph.initializer.extend(
        [
            onnx.numpy_helper.from_array(channel_weights, "weight"),
            onnx.numpy_helper.from_array(bias, "bias"),
        ]
    )
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[1].dim_value = len(labels)
    paths = write_pictures(tmp_path / "golden")
    logits = np.stack(
        [load_image(path).astype(np.float64).mean((0, 1)) @ channel_weights for path in paths]
    ).astype(np.float32)
    write_bundle(tmp_path, {"fp32": model}, logits, labels=labels)
    top1 = int(open_verified_classifier(tmp_path).classify(load_image(paths[0])).argmax())
    assert top1 == int(logits[0].argmax())


def test_bundle_rejects_invalid_file_names(bundle: Path) -> None:
    edit_manifest(bundle, lambda manifest: manifest["variants"][0].update(file="fp32.onnx\0"))
    with pytest.raises(EdgetlError, match="outside the bundle"):
        open_verified_classifier(bundle)
    edit_manifest(bundle, lambda manifest: manifest["variants"][0].update(file="golden"))
    with pytest.raises(BundleError, match="golden is missing"):
        open_verified_classifier(bundle)
