"""Verification of intact, wrong, altered, truncated and swapped bundle files."""

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

from edgetl.cli.exit_codes import ExitCode
from edgetl.core.errors import BundleError, ProviderError
from edgetl.core.files import sha256_file
from edgetl.device import verify as verify_module
from edgetl.device.runtime.bundle import open_bundle
from edgetl.device.verify import verify
from tests.helpers.confidence import add_confidence

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def bundle(stock_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stock_bundle, tmp_path / "bundle")


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest and update the hashes of its variants."""
    path = bundle / "bundle.json"
    content = json.loads(path.read_text())
    change(content)
    for variant in content["variants"]:
        variant["sha256"] = sha256_file(bundle / variant["file"])
    path.write_text(json.dumps(content))


def break_weights(bundle: Path) -> None:
    """Change the model's weights, with a matching hash in the manifest."""
    path = bundle / "fp32.onnx"
    model = onnx.load(path)
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = np.frombuffer(largest.raw_data, np.float32).copy()
    values[: len(values) // 2] *= -1
    largest.raw_data = values.tobytes()
    onnx.save(model, path)
    rewrite(bundle, lambda content: None)


def test_verify_passes_intact_bundle(bundle: Path) -> None:
    (result,) = verify(open_bundle(bundle))
    assert result.passed
    assert result.advice == ""
    assert result.gate.top1_agreement == result.gate.images == 8
    assert result.gate.max_logit_difference <= result.gate.tolerance


def test_verify_fails_wrong_logits_with_advice(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_weights(bundle)
    (result,) = verify(open_bundle(bundle))
    assert not result.passed
    assert "logits differ by" in result.gate.reason
    assert "another onnxruntime" in result.advice
    rewrite(bundle, lambda content: content["variants"][0].update(precision="int8"))
    for supported, advice in (
        (False, "sums 8-bit products in 16 bits"),
        (True, "correct on one CPU can be wrong on another"),
    ):
        monkeypatch.setattr(
            verify_module, "has_int8_dot_product", lambda supported=supported: supported
        )
        (result,) = verify(open_bundle(bundle))
        assert advice in result.advice
        assert "Use another variant" in result.advice


def replace_golden(bundle: Path, **arrays: object) -> None:
    """Replace arrays of golden.npz and update its hash in the manifest."""
    path = bundle / "golden/golden.npz"
    content = {**np.load(path), **arrays}
    np.savez(path, **content)
    rewrite(bundle, lambda content: content["golden"]["logits"].update(sha256=sha256_file(path)))


def test_verify_compares_unknown_scores_with_export(bundle: Path) -> None:
    add_confidence(bundle, threshold=5.0, temperature=1.3)
    (result,) = verify(open_bundle(bundle))
    assert result.passed
    assert result.gate.max_unknown_score_difference == pytest.approx(0, abs=1e-3)
    assert result.gate.max_probability_difference == pytest.approx(0, abs=1e-5)
    scores = np.load(bundle / "golden/golden.npz")["unknown_score_fp32"]
    scores[3] += 0.1 * max(1, abs(scores[3]))
    replace_golden(bundle, unknown_score_fp32=scores)
    (result,) = verify(open_bundle(bundle))
    assert not result.passed
    assert result.gate.max_logit_difference <= result.gate.tolerance
    assert "the unknown score of golden image 3 is" in result.gate.reason
    assert "another onnxruntime" in result.advice


def test_verify_fails_probabilities_of_other_temperature(bundle: Path) -> None:
    add_confidence(bundle, threshold=5.0, temperature=1.3)
    path = bundle / "fp32.onnx"
    model = onnx.load(path)
    temperature = next(item for item in model.graph.initializer if item.name == "temperature")
    temperature.CopyFrom(onnx.numpy_helper.from_array(np.array(1.4, np.float32), "temperature"))
    onnx.save(model, path)
    rewrite(bundle, lambda content: None)
    (result,) = verify(open_bundle(bundle))
    assert not result.passed
    assert "from the softmax of the logits with temperature 1.3" in result.gate.reason


def test_verify_fails_only_the_broken_variant(bundle: Path) -> None:
    content = (bundle / "fp32.onnx").read_bytes()
    (bundle / "truncated.onnx").write_bytes(content[: len(content) // 2])
    rewrite(
        bundle,
        lambda manifest: manifest["variants"].append(
            {**manifest["variants"][0], "name": "truncated", "file": "truncated.onnx"}
        ),
    )
    intact, truncated = verify(open_bundle(bundle))
    assert intact.passed
    assert not truncated.passed
    assert not truncated.gate.checked


def test_verify_rejects_altered_files(bundle: Path, tmp_path: Path) -> None:
    model = bundle / "fp32.onnx"
    content = model.read_bytes()
    for altered in (content[:-1], content[:-1] + bytes([content[-1] ^ 1]), b""):
        model.write_bytes(altered)
        with pytest.raises(BundleError, match=r"does not match bundle\.json"):
            verify(open_bundle(bundle))
    model.write_bytes(content)
    photos = sorted((bundle / "golden").glob("*.png"))
    first, second = photos[0].read_bytes(), photos[1].read_bytes()
    photos[0].write_bytes(second)
    with pytest.raises(BundleError, match=r"does not match bundle\.json"):
        verify(open_bundle(bundle))
    photos[0].write_bytes(first)
    golden = bundle / "golden/golden.npz"
    original = golden.read_bytes()
    stream = io.BytesIO()
    np.savez(stream, logits=np.zeros((8, 1000), np.float32))
    golden.write_bytes(stream.getvalue())
    with pytest.raises(BundleError, match=r"does not match bundle\.json"):
        verify(open_bundle(bundle))
    golden.write_bytes(original)
    assert verify(open_bundle(bundle))[0].passed


def test_verify_rejects_unknown_variant_and_provider(bundle: Path) -> None:
    with pytest.raises(BundleError, match="has no variant 'int8'"):
        verify(open_bundle(bundle), ["int8"])
    with pytest.raises(ProviderError):
        verify(open_bundle(bundle), providers=["nonsense"])


def test_verify_and_predict_commands_agree(edgetl: Run, bundle: Path) -> None:
    photo = next((bundle / "golden").glob("*.png"))
    passed = edgetl("verify", bundle, "--json")
    assert passed.returncode == 0, passed.stderr
    content = json.loads(passed.stdout)
    assert content["kind"] == "verification"
    assert content["variants"][0]["gate"]["passed"]
    assert edgetl("predict", bundle, photo).returncode == 0
    break_weights(bundle)
    failed = edgetl("verify", bundle)
    assert failed.returncode == ExitCode.FAILED_CHECK
    assert "FAILED" in failed.stdout
    prediction = edgetl("predict", bundle, photo)
    assert prediction.returncode == 1
    assert "do not match the reference" in prediction.stderr
    assert prediction.stdout == ""
