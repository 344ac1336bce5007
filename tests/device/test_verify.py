"""A bundle on a device: right, wrong, altered, cut short, mixed up."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgetl.core.errors import BundleError, ProviderError
from edgetl.core.files import sha256_file
from edgetl.device import verify as verifying
from edgetl.device.runtime.bundle import open_bundle
from edgetl.device.verify import verify

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def bundle(stock_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stock_bundle, tmp_path / "bundle")


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest as somebody would who knows about its hashes."""
    path = bundle / "bundle.json"
    content = json.loads(path.read_text())
    change(content)
    for variant in content["variants"]:
        variant["sha256"] = sha256_file(bundle / variant["file"])
    path.write_text(json.dumps(content))


def break_weights(bundle: Path) -> None:
    """The network answers something else, and the manifest vouches for it."""
    path = bundle / "fp32.onnx"
    model = onnx.load(path)
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = np.frombuffer(largest.raw_data, np.float32).copy()
    values[: len(values) // 2] *= -1
    largest.raw_data = values.tobytes()
    onnx.save(model, path)
    rewrite(bundle, lambda content: None)


def test_a_good_bundle_passes_with_figures(bundle: Path) -> None:
    (found,) = verify(open_bundle(bundle))
    assert found.passed
    assert found.advice == ""
    assert found.gate["top1_agreement"] == found.gate["images"] == 8
    assert found.gate["max_logit_difference"] <= found.gate["tolerance"]


def test_wrong_answers_fail_and_say_what_to_do(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_weights(bundle)
    (found,) = verify(open_bundle(bundle))
    assert not found.passed
    assert "logits differ by" in found.gate["reason"]
    assert "another onnxruntime" in found.advice
    rewrite(bundle, lambda content: content["variants"][0].update(precision="int8"))
    for has, words in (
        (False, "sums products of 8 bits in 16"),
        (True, "right on one CPU can be wrong on another"),
    ):
        monkeypatch.setattr(verifying, "has_int8_dot_product", lambda has=has: has)
        (found,) = verify(open_bundle(bundle))
        assert words in found.advice
        assert "Take another variant" in found.advice


def test_a_variant_that_cannot_be_run_fails_beside_those_that_can(bundle: Path) -> None:
    shutil.copy(bundle / "fp32.onnx", bundle / "cut.onnx")
    content = (bundle / "cut.onnx").read_bytes()
    (bundle / "cut.onnx").write_bytes(content[: len(content) // 2])
    rewrite(
        bundle,
        lambda content: content["variants"].append(
            {**content["variants"][0], "name": "cut", "file": "cut.onnx"}
        ),
    )
    good, cut = verify(open_bundle(bundle))
    assert good.passed
    assert not cut.passed
    assert not cut.gate["checked"]


def test_altered_cut_and_mixed_up_files_are_refused(bundle: Path, tmp_path: Path) -> None:
    model = bundle / "fp32.onnx"
    content = model.read_bytes()
    for wrong in (content[:-1], content[:-1] + bytes([content[-1] ^ 1]), b""):
        model.write_bytes(wrong)
        with pytest.raises(BundleError, match="is not the file that was proven"):
            verify(open_bundle(bundle))
    model.write_bytes(content)
    photos = sorted((bundle / "golden").glob("*.png"))
    first, second = photos[0].read_bytes(), photos[1].read_bytes()
    photos[0].write_bytes(second)
    with pytest.raises(BundleError, match="is not the file that was proven"):
        verify(open_bundle(bundle))
    photos[0].write_bytes(first)
    answers = bundle / "golden/golden.npz"
    proven = answers.read_bytes()
    stream = io.BytesIO()
    np.savez(stream, logits=np.zeros((8, 1000), np.float32))
    answers.write_bytes(stream.getvalue())
    with pytest.raises(BundleError, match="is not the file that was proven"):
        verify(open_bundle(bundle))
    answers.write_bytes(proven)
    assert verify(open_bundle(bundle))[0].passed


def test_what_is_not_there_is_named(bundle: Path) -> None:
    with pytest.raises(BundleError, match="has no variant 'int8'"):
        verify(open_bundle(bundle), ["int8"])
    with pytest.raises(ProviderError):
        verify(open_bundle(bundle), providers=["nonsense"])


def test_the_command_and_predict_judge_alike(edgetl: Run, bundle: Path) -> None:
    photo = next((bundle / "golden").glob("*.png"))
    right = edgetl("verify", bundle, "--json")
    assert right.returncode == 0, right.stderr
    content = json.loads(right.stdout)
    assert content["kind"] == "verification"
    assert content["variants"][0]["gate"]["passed"]
    assert edgetl("predict", bundle, photo).returncode == 0
    break_weights(bundle)
    wrong = edgetl("verify", bundle)
    assert wrong.returncode == 1
    assert "FAILED" in wrong.stdout
    refused = edgetl("predict", bundle, photo)
    assert refused.returncode == 1
    assert "does not answer here as it was proven to" in refused.stderr
    assert refused.stdout == ""
