"""Sessions of split models: three files that behave like one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from edgetl.core.artifacts.model_metadata import ModelMetadata, SplitFiles
from edgetl.core.errors import BundleError, ProviderError
from edgetl.core.typed_json import FieldError
from edgetl.device.runtime import session as session_module
from edgetl.device.runtime.classifier import open_classifier
from edgetl.device.runtime.profile import profile_nodes
from edgetl.device.runtime.session import create_session
from tests.helpers.bundles import CONTRACT, LABELS

SIDE = CONTRACT.crop
FILES = SplitFiles("net.preprocessing.onnx", "net.postprocessing.onnx")


def write_split(folder: Path, changed_metadata: dict[str, str] | None = None) -> Path:
    """Write a crop of the corner, a network of color sums, and a softmax; return the network."""
    parts = {
        FILES.preprocessing: f"""(uint8[batch, height, width, 3] image)
            => (uint8[batch, 3, {SIDE}, {SIDE}] cropped)
            <int64[2] start = {{0, 0}}, int64[2] end = {{{SIDE}, {SIDE}}}, int64[2] axes = {{1, 2}}>
            {{
                corner = Slice(image, start, end, axes)
                cropped = Transpose<perm = [0, 3, 1, 2]>(corner)
            }}""",
        "net.onnx": f"""(uint8[1, 3, {SIDE}, {SIDE}] cropped)
            => (float[1, 2] logits, float[1, 3] unknown_inputs)
            <int64[2] axes = {{2, 3}}, float[3, 2] weight = {{0.02, -0.01, -0.015, 0.01, 0.005, 0.02}}>
            {{
                values = Cast<to = 1>(cropped)
                unknown_inputs = ReduceMean<keepdims = 0>(values, axes)
                logits = MatMul(unknown_inputs, weight)
            }}""",
        FILES.postprocessing: """(float[batch, 2] logits, float[batch, 3] unknown_inputs)
            => (float[batch, 2] probabilities, float[batch] unknown_score)
            <int64[1] axis = {1}> {
                probabilities = Softmax<axis = 1>(logits)
                unknown_score = ReduceMax<keepdims = 0>(unknown_inputs, axis)
            }""",
    }
    metadata = ModelMetadata(tuple(LABELS), CONTRACT, "image", "0123456789ab", split=FILES)
    properties = metadata.to_properties() | (changed_metadata or {})
    for name, text in parts.items():
        model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> graph {text}')
        if name == "net.onnx":
            helper.set_model_props(model, properties)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, folder / name)
    return folder / "net.onnx"


@pytest.fixture
def photos() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (3, SIDE + 5, SIDE + 9, 3), np.uint8)


def test_batch_is_run_image_by_image(tmp_path: Path, photos: NDArray[np.uint8]) -> None:
    session = create_session(write_split(tmp_path), threads=1)
    assert session.get_inputs()[0].name == "image"
    names = [output.name for output in session.get_outputs()]
    assert names == ["logits", "unknown_inputs", "probabilities", "unknown_score"]
    means = photos[:, :SIDE, :SIDE].mean((1, 2))
    logits, inputs, probabilities, scores = session.run(None, {"image": photos})
    assert inputs == pytest.approx(means, abs=1e-3)
    weight = np.array([[0.02, -0.01], [-0.015, 0.01], [0.005, 0.02]])
    assert logits == pytest.approx(means @ weight, abs=1e-3)
    exponentials = np.exp(logits)
    assert probabilities == pytest.approx(exponentials / exponentials.sum(1, keepdims=True))
    assert scores == pytest.approx(means.max(1), abs=1e-3)
    swapped = session.run(["unknown_score", "logits"], {"image": photos})
    assert np.array_equal(swapped[0], scores)
    assert np.array_equal(swapped[1], logits)


def test_classifier_runs_a_split_file(tmp_path: Path, photos: NDArray[np.uint8]) -> None:
    classifier = open_classifier(write_split(tmp_path))
    outputs = classifier.run(photos)
    assert outputs.logits.shape == outputs.probabilities.shape == (3, 2)
    assert classifier.labels == tuple(LABELS)
    assert classifier.fixed_size is None


def test_other_methods_are_those_of_the_network(tmp_path: Path, photos: NDArray[np.uint8]) -> None:
    path = write_split(tmp_path)
    session = create_session(path, threads=1)
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert session.get_session_options().intra_op_num_threads == 1
    assert "edgetl.split" in session.get_modelmeta().custom_metadata_map
    nodes = profile_nodes(
        lambda prefix: create_session(path, profile_prefix=prefix), {"image": photos[:1]}, 2
    )
    assert {"ReduceMean", "MatMul"} <= {node.operator for node in nodes}
    assert "Softmax" not in {node.operator for node in nodes}


def test_missing_part_is_reported(tmp_path: Path) -> None:
    path = write_split(tmp_path)
    (tmp_path / FILES.postprocessing).unlink()
    with pytest.raises(BundleError, match=r"net\.onnx needs .* in the same folder"):
        create_session(path)


def test_nvidia_providers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "available_providers", lambda: ["cpu", "cuda"])
    with pytest.raises(ProviderError, match=r"net\.onnx is made for NPUs"):
        create_session(write_split(tmp_path), "cuda")


def test_parts_are_not_split_again(tmp_path: Path) -> None:
    own_name = '{"preprocessing": "net.preprocessing.onnx", "postprocessing": "net.onnx"}'
    session = create_session(write_split(tmp_path, {"edgetl.split": own_name}))
    names = [output.name for output in session.get_outputs()]
    assert names == ["logits", "unknown_inputs", "logits", "unknown_inputs"]


@pytest.mark.parametrize("name", ["../x.onnx", "/x.onnx", "a\\x.onnx", "x\0.onnx", "x.bin", ""])
def test_parts_lie_in_the_same_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(FieldError, match="same folder"):
        SplitFiles(name, FILES.postprocessing)
    text = json.dumps({"preprocessing": name, "postprocessing": "y.onnx"})
    with pytest.raises(BundleError, match="metadata"):
        create_session(write_split(tmp_path, {"edgetl.split": text}))
