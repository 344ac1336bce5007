"""Injected faults are detected, and the messages name their cause."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgetl.core.errors import ExportError, ParityError
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.runtime.preprocessing import normalize
from edgetl.export import bundle_writer, exporter
from edgetl.export.graph import assemble as graph
from edgetl.export.parity.diagnosis import diagnose_input, diagnose_logits, diagnose_pixels
from edgetl.train.model.factory import load_stock_model
from tests.conftest import ARCHITECTURE, IMAGE_SIZE

InjectFault = Callable[[onnx.ModelProto], None]


def constant(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def wrong_mean(model: onnx.ModelProto) -> None:
    offset = constant(model, "pre_offset")
    values = numpy_helper.to_array(offset).copy()
    values[1::3] = -0.5 / 0.224
    offset.CopyFrom(numpy_helper.from_array(values, offset.name))


def swapped_channels(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0], np.int64), "swap"))
    index = next(
        index for index, node in enumerate(model.graph.node) if node.output[0] == "pre_values"
    )
    model.graph.node[index].output[0] = "pre_values_before"
    swap = helper.make_node("Gather", ["pre_values_before", "swap"], ["pre_values"], axis=1)
    model.graph.node.insert(index + 1, swap)


def missing_antialias(model: onnx.ModelProto) -> None:
    shrink = next(node for node in model.graph.node if node.op_type == "If").attribute[1].g
    resize = next(node for node in shrink.node if node.op_type == "Resize")
    for attribute in resize.attribute:
        if attribute.name in ("antialias", "exclude_outside"):
            attribute.i = 0


def flipped_label_order(model: onnx.ModelProto) -> None:
    last = next(node for node in reversed(model.graph.node) if node.op_type == "Gemm")
    for name in last.input[1:]:
        tensor = constant(model, name)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[::-1].copy(), name))


FAULTS: dict[str, tuple[InjectFault, str]] = {
    "wrong mean": (
        wrong_mean,
        r"normalizes channel G with mean 0\.500 and std 0\.224; training used 0\.456",
    ),
    "swapped channels": (swapped_channels, "in the order BGR instead of RGB"),
    "missing antialias": (missing_antialias, "Resize lacks antialias=1 and exclude_outside=1"),
    "flipped label order": (
        flipped_label_order,
        r"another order of labels: output \d+ is class \d+",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_parity_error_names_injected_fault(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export: Any
) -> None:
    inject, message = FAULTS[fault]

    def assemble(*arguments: Any) -> onnx.ModelProto:
        model = graph.assemble(*arguments)
        inject(model)
        return model

    monkeypatch.setattr(exporter, "assemble", assemble)
    with pytest.raises(ParityError, match=message):
        export(tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_export_error_names_truncated_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export: Any
) -> None:
    def write_truncated(*arguments: Any) -> Path:
        path = bundle_writer.write_model(*arguments)
        path.write_bytes(path.read_bytes()[:-1000])
        return path

    monkeypatch.setattr(exporter, "write_model", write_truncated)
    with pytest.raises(
        ExportError, match=r"fp32\.onnx cannot be read back .* truncated or damaged"
    ):
        export(tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_parity_error_names_batch_norm_in_training_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export: Any, random_weights: Path
) -> None:
    model = load_stock_model(ARCHITECTURE, str(random_weights), IMAGE_SIZE)
    model.model.features[3].train()  # type: ignore[union-attr,index]
    monkeypatch.setattr(exporter, "load_stock_model", lambda *_: model)
    with pytest.raises(ParityError, match=r"features\.3\.\S+ \(BatchNorm2d\) is in training mode"):
        export(tmp_path / "new")


def test_diagnoses_are_empty_without_known_fault() -> None:
    generator = np.random.default_rng(0)
    preprocessing = Preprocessing.for_image_size(32)
    crops = generator.integers(0, 256, (2, 32, 32, 3), np.uint8)
    inputs = normalize(crops, preprocessing)
    assert diagnose_input(inputs, inputs, crops, preprocessing) == ""
    assert diagnose_pixels(crops, crops[::-1], onnx.ModelProto()) == ""
    logits = generator.normal(size=(5, 7)).astype(np.float32)
    assert diagnose_logits(logits, logits + 1e-5, 1e-3) == ""
    assert diagnose_logits(logits, logits + 1, 1e-3) == ""


def test_diagnoses_recognize_permutations_and_constants() -> None:
    generator = np.random.default_rng(0)
    preprocessing = Preprocessing.for_image_size(32)
    crops = generator.integers(0, 256, (2, 32, 32, 3), np.uint8)
    inputs = normalize(crops, preprocessing)
    logits = generator.normal(size=(5, 7)).astype(np.float32)
    assert "output 0 is class 6" in diagnose_logits(logits, logits[:, ::-1], 1e-3)
    assert "BGR" in diagnose_pixels(crops[..., ::-1], crops, onnx.ModelProto())
    assert "one constant" in diagnose_input(np.zeros_like(inputs), inputs, crops, preprocessing)
