"""Bundles that were damaged, edited or made to harm: each is refused with one sentence."""

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
from edgetl.device.runtime import classifier as classifier_module
from edgetl.device.runtime.bundle import open_bundle
from edgetl.device.runtime.classifier import Classifier, open_classifier, open_verified_classifier
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.onnx_file import OnnxFileError, read_onnx_file
from edgetl.device.runtime.session import create_session
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
from tools.checks.fuzz.mutation import mutate_json

RUN_ID = "0123456789ab"


def stated_model() -> onnx.ModelProto:
    model = colour_model()
    stated = {
        "labels": LABELS,
        "preprocessing": CONTRACT.to_json(),
        "input": "image",
        "run_id": RUN_ID,
    }
    onnx.helper.set_model_props(
        model, {f"edgetl.{key}": json.dumps(value) for key, value in stated.items()}
    )
    return model


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    pictures = write_pictures(folder / "golden")
    return write_bundle(
        folder,
        {"fp32": stated_model()},
        np.stack([colour_logits(load_image(path)) for path in pictures]),
    )


def edit(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = bundle / "bundle.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def replace_arrays(bundle: Path, content: bytes) -> None:
    path = bundle / "golden/golden.npz"
    path.write_bytes(content)
    edit(bundle, lambda manifest: manifest["golden"]["logits"].update(sha256=sha256_file(path)))


def saved(**arrays: NDArray[Any]) -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def logits_of(bundle: Path) -> NDArray[np.float32]:
    logits: NDArray[np.float32] = np.load(bundle / "golden/golden.npz")["logits"]
    return logits


def test_whole_bundle_is_read(bundle: Path) -> None:
    open_verified_classifier(bundle)
    assert all(one.passed for one in verify(open_bundle(bundle)))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("labels", lambda manifest: manifest["labels"].reverse()),
        ("preprocessing", lambda manifest: manifest["preprocessing"].update(mean=[0.5, 0.5, 0.5])),
        ("run", lambda manifest: manifest["run"].update(id="ffffffffffff")),
        ("input", lambda manifest: manifest["variants"][0].update(input="tensor")),
    ],
)
def test_manifest_and_metadata_agree(
    bundle: Path, name: str, change: Callable[[dict[str, Any]], Any]
) -> None:
    edit(bundle, change)
    with pytest.raises(BundleError, match=f"differ in {name}"):
        open_verified_classifier(bundle)
    with pytest.raises(BundleError, match=f"differ in {name}"):
        verify(open_bundle(bundle))


def test_golden_labels_agree(bundle: Path) -> None:
    logits = logits_of(bundle)
    replace_arrays(bundle, saved(logits=logits, labels=np.array(LABELS)))
    open_verified_classifier(bundle)
    replace_arrays(bundle, saved(logits=logits, labels=np.array(LABELS[::-1])))
    with pytest.raises(BundleError, match="or their order, do not match"):
        open_verified_classifier(bundle)


def test_external_data_is_refused(bundle: Path) -> None:
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
    edit(
        bundle,
        lambda manifest: manifest["variants"][0].update(sha256=sha256_file(bundle / "fp32.onnx")),
    )
    assert read_onnx_file(bundle / "fp32.onnx").has_external_data
    with pytest.raises(BundleError, match="stores weights in other files"):
        open_verified_classifier(bundle)


def test_external_data_within_subgraphs_is_seen(tmp_path: Path) -> None:
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
    then = next(
        attribute for attribute in model.graph.node[0].attribute if attribute.name == "then_branch"
    )
    then.g.node[0].attribute[0].t.ClearField("data_location")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert not read_onnx_file(tmp_path / "m.onnx").has_external_data


def test_metadata_is_what_onnx_reads(bundle: Path) -> None:
    model = onnx.load(bundle / "fp32.onnx")
    assert read_onnx_file(bundle / "fp32.onnx").metadata == {
        entry.key: entry.value for entry in model.metadata_props
    }


def test_onnx_bytes_of_any_kind_are_read_or_refused(tmp_path: Path) -> None:
    whole, generator = stated_model().SerializeToString(), random.Random(0)
    path = tmp_path / "m.onnx"
    for _ in range(500):
        content = bytearray(
            whole[: generator.randrange(len(whole))] if generator.random() < 0.3 else whole
        )
        for _ in range(generator.randint(1, 4)):
            if content:
                content[generator.randrange(len(content))] = generator.randrange(256)
        path.write_bytes(content)
        try:
            read_onnx_file(path)
        except OnnxFileError:
            continue


@pytest.mark.parametrize("tolerance", [0, -1, 1e9, 50.0])
def test_tolerance_is_bounded(bundle: Path, tolerance: float) -> None:
    edit(bundle, lambda manifest: manifest["golden"].update(tolerance=tolerance))
    with pytest.raises(BundleError, match="it would accept wrong logits"):
        open_verified_classifier(bundle)
    edit(bundle, lambda manifest: manifest["golden"].update(tolerance=0.05))
    edit(
        bundle,
        lambda manifest: manifest["variants"][0].update(parity={"path": {"tolerance": tolerance}}),
    )
    with pytest.raises(BundleError, match="it would accept wrong logits"):
        open_verified_classifier(bundle)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999", '"0.05"', "null"])
def test_tolerance_is_a_finite_number(bundle: Path, text: str) -> None:
    path = bundle / "bundle.json"
    path.write_text(path.read_text().replace('"tolerance": 0.05', f'"tolerance": {text}'))
    with pytest.raises(BundleError):
        open_verified_classifier(bundle)


def arrays(bundle: Path, name: str) -> bytes:
    logits = logits_of(bundle)
    whole = saved(logits=logits)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (10**9, 10**6)}
    )
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("logits.npy", header.getvalue())
    makers: dict[str, Callable[[], bytes]] = {
        "pickled": lambda: saved(logits=np.array([{"a": 1}], dtype=object)),
        "truncated": lambda: whole[: len(whole) // 2],
        "empty": lambda: b"",
        "without logits": lambda: saved(files=np.array(["a"])),
        "of another shape": lambda: saved(logits=logits.T),
        "of texts": lambda: saved(logits=np.full(logits.shape, "a")),
        "not finite": lambda: saved(logits=np.full_like(logits, np.nan)),
        "of bytes": lambda: b"PK\x03\x04" + bytes(100),
        "of a shape without end": lambda: bomb.getvalue(),
        "of many zeros": lambda: saved(logits=np.zeros((20_000, 2_000), np.float32)),
        "of labels without end": lambda: saved(
            logits=logits, labels=np.array(["a", "b" * 10_000_000])
        ),
    }
    return makers[name]()


@pytest.mark.parametrize(
    "name",
    [
        "pickled", "truncated", "empty", "without logits", "of another shape", "of texts", "not finite", "of bytes",
        "of a shape without end", "of many zeros", "of labels without end",
    ],
)  # fmt: skip
def test_arrays_are_checked_before_they_are_read(bundle: Path, name: str) -> None:
    replace_arrays(bundle, arrays(bundle, name))
    tracemalloc.start()
    try:
        with pytest.raises(BundleError, match=r"golden\.npz"):
            open_verified_classifier(bundle)
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("seed", range(4))
def test_retyped_manifests_are_one_sentence(bundle: Path, seed: int) -> None:
    generator, path = random.Random(seed), bundle / "bundle.json"
    whole = json.loads(path.read_text())
    answered = 0
    for _ in range(60):
        path.write_text(json.dumps(mutate_json(whole, generator)))
        try:
            open_verified_classifier(bundle)
            opened = open_bundle(bundle)
            opened.companion_files()
            answered += 1
        except (BundleError, DecodeError):
            continue
    assert answered < 60


def test_no_reference_images(bundle: Path) -> None:
    edit(bundle, lambda manifest: manifest["golden"].update(images=[]))
    with pytest.raises(BundleError, match="no reference images"):
        open_bundle(bundle)


def test_metadata_of_another_form(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for key, value in {
        "labels": "5",
        "preprocessing": "[]",
        "input": '"video"',
        "labels ": "{",
        "run_id": "{",
    }.items():
        model = stated_model()
        props = {entry.key: entry.value for entry in model.metadata_props} | {
            f"edgetl.{key.strip()}": value
        }
        onnx.helper.set_model_props(model, props)
        path.write_bytes(model.SerializeToString())
        with pytest.raises(BundleError):
            open_classifier(path)


def test_answers_for_other_labels(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(colour_model().SerializeToString())
    three = Classifier(create_session(path), [*LABELS, "bird"], CONTRACT, "image")
    with pytest.raises(BundleError, match="for 3 labels"):
        three.classify(np.zeros((40, 40, 3), np.uint8))
    tensors = Classifier(create_session(path), LABELS, CONTRACT, "tensor")
    with pytest.raises(BundleError, match="cannot be run"):
        tensors.classify(np.zeros((40, 40, 3), np.uint8))


def endless_model() -> onnx.ModelProto:
    """As `colour_model`, with a loop before its answer that never ends."""
    body = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Identity", ["going"], ["on"]),
            onnx.helper.make_node("Identity", ["value"], ["same"]),
        ],
        "body",
        [
            onnx.helper.make_tensor_value_info("number", onnx.TensorProto.INT64, []),
            onnx.helper.make_tensor_value_info("going", onnx.TensorProto.BOOL, []),
            onnx.helper.make_tensor_value_info("value", onnx.TensorProto.FLOAT, None),
        ],
        [
            onnx.helper.make_tensor_value_info("on", onnx.TensorProto.BOOL, []),
            onnx.helper.make_tensor_value_info("same", onnx.TensorProto.FLOAT, None),
        ],
    )
    model = stated_model()
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "always"))
    nodes = list(model.graph.node)
    scores = next(node for node in nodes if "scores" in node.input)
    scores.input[list(scores.input).index("scores")] = "looped"
    del model.graph.node[:]
    loop = onnx.helper.make_node("Loop", ["", "always", "scores"], ["looped"], body=body)
    model.graph.node.extend([*nodes[:3], loop, *nodes[3:]])
    onnx.checker.check_model(model)
    return model


def test_model_without_end_is_ended(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bundle(bundle, {"fp32": endless_model()}, logits_of(bundle))
    monkeypatch.setattr(
        classifier_module,
        "run_with_timeout",
        lambda session, outputs, feed: run_with_timeout(session, outputs, feed, 1.0),
    )
    with pytest.raises(BundleError, match="timed out after 1 seconds"):
        open_verified_classifier(bundle)


def test_ten_thousand_classes(tmp_path: Path) -> None:
    labels = [f"class {number}" for number in range(10_000)]
    model = colour_model()
    generator = np.random.default_rng(0)
    weight, bias = (
        generator.normal(size=(2, len(labels))).astype(np.float32),
        np.zeros(len(labels), np.float32),
    )
    for name in ("weight", "bias"):
        model.graph.initializer.remove(
            next(tensor for tensor in model.graph.initializer if tensor.name == name)
        )
    weight3 = np.concatenate([weight, weight[:1]])
    model.graph.initializer.extend(
        [
            onnx.numpy_helper.from_array(weight3, "weight"),
            onnx.numpy_helper.from_array(bias, "bias"),
        ]
    )
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[1].dim_value = len(labels)
    pictures = write_pictures(tmp_path / "golden")
    logits = np.stack(
        [load_image(path).astype(np.float64).mean((0, 1)) @ weight3 for path in pictures]
    ).astype(np.float32)
    write_bundle(tmp_path, {"fp32": model}, logits, labels=labels)
    best = int(open_verified_classifier(tmp_path).classify(load_image(pictures[0])).argmax())
    assert best == int(logits[0].argmax())


def test_missing_rights_and_links(bundle: Path) -> None:
    edit(bundle, lambda manifest: manifest["variants"][0].update(file="fp32.onnx\0"))
    with pytest.raises(EdgetlError, match="outside the bundle"):
        open_verified_classifier(bundle)
    edit(bundle, lambda manifest: manifest["variants"][0].update(file="golden"))
    with pytest.raises(BundleError, match="lacks golden"):
        open_verified_classifier(bundle)
