"""Conversion to ExecuTorch."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgetl.core.errors import ExportError, MissingPackageError
from edgetl.device.runtime.sessions.executorch_session import ExecuTorchSession
from edgetl.device.runtime.sessions.session import SessionSource
from edgetl.export.formats import executorch as converter
from edgetl.export.formats.executorch import convert_to_executorch
from tests.helpers.executorch import CROP, SmallNetwork, conversion_task, training_images

with_executorch = pytest.mark.skipif(
    find_spec("executorch") is None, reason="executorch is not installed"
)


class DataDependent(nn.Module):
    """A network that cannot be exported."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels if pixels.sum() > 0 else -pixels


@pytest.mark.skipif(find_spec("executorch") is not None, reason="executorch is installed")
def test_missing_executorch_names_the_extra(tmp_path: Path) -> None:
    with pytest.raises(MissingPackageError, match=r"edgetl\[executorch\]"):
        convert_to_executorch(conversion_task(tmp_path))


@with_executorch
def test_int8_follows_float32_and_is_smaller(tmp_path: Path) -> None:
    float32, int8 = convert_to_executorch(conversion_task(tmp_path))
    assert [float32.name, int8.name] == ["executorch-fp32", "executorch-int8"]
    assert [float32.precision, int8.precision] == ["fp32", "int8"]
    assert float32.method is None
    assert "24 training images" in str(int8.method)
    logits = {}
    pixels = np.concatenate(list(training_images().held_out.batches()))
    for item in (float32, int8):
        session = ExecuTorchSession(SessionSource(item.files, 1, CROP, item.precision))
        logits[item.name] = session.run(("logits",), pixels)[0]
    expected = logits["executorch-fp32"]
    difference = np.abs(logits["executorch-int8"] - expected).max()
    assert 0 < difference < 0.1 * (expected.max() - expected.min())


@with_executorch
def test_int8_is_written_only_on_request(tmp_path: Path) -> None:
    files = convert_to_executorch(conversion_task(tmp_path, wants_int8=False))
    assert [path.name for path in tmp_path.iterdir()] == ["executorch-fp32.pte"]
    assert [item.name for item in files] == ["executorch-fp32"]


@with_executorch
def test_conversion_leaves_the_network_unchanged(tmp_path: Path) -> None:
    network = SmallNetwork()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    convert_to_executorch(conversion_task(tmp_path, network))
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@with_executorch
def test_networks_that_cannot_be_exported_are_reported(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be exported for ExecuTorch"):
        convert_to_executorch(conversion_task(tmp_path, DataDependent()))


@with_executorch
def test_float32_remains_when_quantization_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> nn.Module:
        raise ExportError("The network cannot be quantized for ExecuTorch: no such operator.")

    monkeypatch.setattr(converter, "_quantize", fail)
    with caplog.at_level(logging.WARNING):
        files = convert_to_executorch(conversion_task(tmp_path))
    assert [item.name for item in files] == ["executorch-fp32"]
    assert "no such operator" in caplog.text
