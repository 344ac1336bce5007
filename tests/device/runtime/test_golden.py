"""The check of probabilities and unknown scores on the golden images."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edgetl.core.artifacts.gate import GateResult
from edgetl.device.runtime.golden import ConfidenceReference, GoldenOutputs, check_confidence

LOGITS = np.array([[2.0, 0.0, -1.0], [0.0, 0.5, -3.0]])
SCORES = np.array([0.2, 30.0], np.float32)
PASSED = GateResult(checked=True, passed=True, images=2)


def probabilities(temperature: float) -> NDArray[np.float64]:
    exponentials = np.exp(LOGITS / temperature)
    return np.asarray(exponentials / exponentials.sum(1, keepdims=True))


def check(
    temperature: float = 1.0,
    scores: NDArray[np.float64] | None = None,
    expected: NDArray[np.float32] | None = SCORES,
    shares: NDArray[np.float64] | None = None,
) -> GateResult:
    """Check outputs whose temperature is 2 and whose scores are `SCORES`, unless other ones."""
    outputs = GoldenOutputs(
        LOGITS,
        probabilities(2.0) if shares is None else shares,
        SCORES.astype(np.float64) if scores is None else scores,
    )
    reference = ConfidenceReference(temperature, 1e-5, True, expected, 0.05)
    return check_confidence(PASSED, outputs, reference)


def test_outputs_equal_to_reference_pass() -> None:
    gate = check(2.0)
    assert gate.passed
    assert gate.max_probability_difference == pytest.approx(0, abs=1e-12)
    assert gate.max_unknown_score_difference == 0


def test_probabilities_of_other_temperature_fail() -> None:
    gate = check(1.9)
    assert not gate.passed
    assert "from the softmax of the logits with temperature 1.9" in str(gate.reason)
    assert gate.max_probability_difference == pytest.approx(
        np.abs(probabilities(2.0) - probabilities(1.9)).max()
    )


def test_probabilities_are_accepted_up_to_tolerance() -> None:
    assert check(2.0, shares=probabilities(2.0) + 9e-6).passed
    assert not check(2.0, shares=probabilities(2.0) + 2e-5).passed


@pytest.mark.parametrize("shares", [np.full((2, 3), np.nan), np.full((2, 2), 0.5)])
def test_invalid_probabilities_fail(shares: NDArray[np.float64]) -> None:
    gate = check(2.0, shares=shares)
    assert not gate.passed
    assert gate.reason == "the probabilities must be finite and of shape (2, 3)"
    assert gate.max_probability_difference is None


@pytest.mark.parametrize(
    ("scores", "passed"),
    [
        ([0.24, 30.0], True),
        ([0.26, 30.0], False),
        ([0.2, 31.4], True),  # 5% of the score
        ([0.2, 31.6], False),
    ],
)
def test_unknown_scores_are_accepted_up_to_tolerance(scores: list[float], passed: bool) -> None:
    gate = check(2.0, np.array(scores))
    assert gate.passed == passed
    assert gate.max_unknown_score_difference == pytest.approx(
        np.abs(np.array(scores) - SCORES).max()
    )
    if not passed:
        assert "at the export" in str(gate.reason)


@pytest.mark.parametrize("scores", [[0.2, np.nan], [0.2, np.inf], [0.2]])
@pytest.mark.parametrize("expected", [SCORES, None], ids=["recorded", "not recorded"])
def test_invalid_unknown_scores_fail(
    scores: list[float], expected: NDArray[np.float32] | None
) -> None:
    gate = check(2.0, np.array(scores), expected)
    assert not gate.passed
    assert "the unknown scores must be finite" in str(gate.reason)


def test_scores_without_record_only_need_to_be_finite() -> None:
    gate = check(2.0, np.array([7.0, -7.0]), None)
    assert gate.passed
    assert gate.max_unknown_score_difference is None


def test_missing_unknown_score_fails_only_if_expected() -> None:
    outputs = GoldenOutputs(LOGITS, probabilities(2.0))
    for detects_unknown in (True, False):
        reference = ConfidenceReference(2.0, 1e-5, detects_unknown, None, 0.05)
        assert check_confidence(PASSED, outputs, reference).passed != detects_unknown


def test_runtime_with_logits_only_is_not_checked() -> None:
    reference = ConfidenceReference(2.0, 1e-5, True, SCORES, 0.05)
    assert check_confidence(PASSED, GoldenOutputs(LOGITS), reference) == PASSED


def test_failed_logits_remain_the_reason() -> None:
    failed = GateResult(checked=True, passed=False, images=2, reason="logits differ")
    outputs = GoldenOutputs(LOGITS, probabilities(1.0), np.array([9.0, 9.0]))
    reference = ConfidenceReference(2.0, 1e-5, True, SCORES, 0.05)
    assert check_confidence(failed, outputs, reference) == failed


def test_tiny_temperature_gives_finite_probabilities() -> None:
    reference = ConfidenceReference(1e-300, 1e-5, False, None, 0.05)
    outputs = GoldenOutputs(LOGITS, np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    assert check_confidence(PASSED, outputs, reference).passed
