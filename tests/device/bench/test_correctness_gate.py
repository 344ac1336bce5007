from __future__ import annotations

import numpy as np
import pytest

from edgetl.core.artifacts.gate import GateResult
from edgetl.device.bench.correctness_gate import _check_model_scope
from edgetl.device.runtime.golden import check_logits, gate_tolerance

REFERENCE = np.array([[2.0, 0.0, -1.0], [0.0, 0.02, -3.0]], np.float32)


def test_equal_logits_pass() -> None:
    verdict = check_logits(REFERENCE.astype(np.float64) + 1e-4, REFERENCE, 0.05)
    assert verdict.passed
    assert verdict.checked
    assert (verdict.images, verdict.top1_agreement) == (2, 2)
    assert verdict.max_logit_difference == pytest.approx(1e-4, rel=1e-3)


def test_logit_beyond_tolerance_fails() -> None:
    logits = REFERENCE.astype(np.float64)
    logits[1, 2] += 0.06
    verdict = check_logits(logits, REFERENCE, 0.05)
    assert not verdict.passed
    assert "differ by 0.06" in verdict.reason


def test_other_class_fails_within_tolerance() -> None:
    logits = np.array([[0.5, 1.0, -1.0], [0.0, 0.02, -3.0]])
    verdict = check_logits(logits, REFERENCE, 1.6)
    assert not verdict.passed
    assert verdict.top1_agreement == 1
    assert "1 of 2" in verdict.reason


def test_tie_within_tolerance_passes() -> None:
    logits = np.array([[2.0, 0.0, -1.0], [0.011, 0.01, -3.0]])
    assert check_logits(logits, REFERENCE, 0.05).passed


@pytest.mark.parametrize(
    "logits",
    [np.full((2, 3), np.nan), np.full((2, 3), np.inf), np.zeros((2, 4)), np.zeros((1, 3))],
)
def test_invalid_logits_fail(logits: np.ndarray) -> None:
    verdict = check_logits(logits, REFERENCE, 0.05)
    assert not verdict.passed
    assert verdict.reason


def test_other_logits_in_scope_model_fail() -> None:
    """Golden logits agree, but tensors are cropped differently: the runtimes disagree."""
    passed = GateResult(checked=True, passed=True)
    reference = np.array([[1.0, 2.0]])
    assert _check_model_scope(passed, reference, reference[:, None] + 1e-6, 0.05).passed
    failed = _check_model_scope(passed, reference, reference[:, None] + 0.2, 0.05)
    assert not failed.passed
    assert failed.model_scope_difference == pytest.approx(0.2)
    not_finite = _check_model_scope(passed, reference, np.array([[[1.0, np.nan]]]), 0.05)
    assert not not_finite.passed
    assert "not finite" in not_finite.reason


LARGE = np.array([[30.0, -50.0, 4.0]], np.float32)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "nv_tensorrt_rtx"])
def test_tf32_tolerance_is_one_percent_of_largest_logit(provider: str) -> None:
    assert gate_tolerance(LARGE, provider, 0.05, None) == pytest.approx(0.5)


@pytest.mark.parametrize("provider", ["cpu", "openvino", "xnnpack", "qnn"])
def test_other_providers_use_bundle_tolerance(provider: str) -> None:
    assert gate_tolerance(LARGE, provider, 0.05, None) == 0.05


def test_widest_tolerance_applies() -> None:
    small = REFERENCE
    assert gate_tolerance(small, "cuda", 0.05, 0.9) == 0.9
    assert gate_tolerance(small, "cuda", 0.05, None) == 0.05
    assert gate_tolerance(LARGE, "cuda", 0.05, None, relative=0.05) == pytest.approx(2.5)
    assert gate_tolerance(LARGE, "cpu", 0.05, None, relative=0.05) == pytest.approx(2.5)


def test_verdict_records_applied_tolerance() -> None:
    logits = LARGE.astype(np.float64) + 0.4
    on_gpu = check_logits(logits, LARGE, gate_tolerance(LARGE, "cuda", 0.05))
    on_cpu = check_logits(logits, LARGE, gate_tolerance(LARGE, "cpu", 0.05))
    assert (on_gpu.passed, on_gpu.tolerance) == (True, pytest.approx(0.5))
    assert (on_cpu.passed, on_cpu.tolerance) == (False, 0.05)


def test_tf32_rounding_stays_within_tolerance() -> None:
    """Logits of a deep random network with factors rounded to TF32's 10 bits of mantissa."""
    generator = np.random.default_rng(0)
    layers = [
        generator.normal(0, np.sqrt(2 / 256), (256, 256)).astype(np.float32) for _ in range(50)
    ]
    exact = rounded = generator.normal(0, 1, (16, 256)).astype(np.float32)
    for weight in layers:
        exact = np.maximum(exact @ weight, 0)
        rounded = np.maximum(_round_to_tf32(rounded) @ _round_to_tf32(weight), 0)
    difference = np.abs(rounded - exact).max()
    tolerance = gate_tolerance(exact, "cuda", 0.0)
    assert difference < tolerance
    # The tolerance must not hide real errors such as swapped outputs.
    swapped = exact[:, ::-1]
    assert np.abs(swapped - exact).max() > 10 * tolerance


def _round_to_tf32(values: np.ndarray) -> np.ndarray:
    bits = values.view(np.uint32) + np.uint32(1 << 12)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)
