from __future__ import annotations

import numpy as np
import pytest

from edgetl.device.answers import judge_answers
from edgetl.device.bench.proving import _same_work

REFERENCE = np.array([[2.0, 0.0, -1.0], [0.0, 0.02, -3.0]], np.float32)


def test_the_same_answers_pass() -> None:
    verdict = judge_answers(REFERENCE.astype(np.float64) + 1e-4, REFERENCE, 0.05)
    assert verdict["passed"]
    assert verdict["checked"]
    assert (verdict["images"], verdict["top1_agreement"]) == (2, 2)
    assert verdict["max_logit_difference"] == pytest.approx(1e-4, rel=1e-3)


def test_one_logit_beyond_the_tolerance_fails() -> None:
    answers = REFERENCE.astype(np.float64)
    answers[1, 2] += 0.06
    verdict = judge_answers(answers, REFERENCE, 0.05)
    assert not verdict["passed"]
    assert "differ by 0.06" in verdict["reason"]


def test_another_class_fails_even_where_the_tolerance_is_wide() -> None:
    answers = np.array([[0.5, 1.0, -1.0], [0.0, 0.02, -3.0]])
    verdict = judge_answers(answers, REFERENCE, 1.6)
    assert not verdict["passed"]
    assert verdict["top1_agreement"] == 1
    assert "1 of 2" in verdict["reason"]


def test_a_tie_within_the_tolerance_is_no_mistake() -> None:
    answers = np.array([[2.0, 0.0, -1.0], [0.011, 0.01, -3.0]])
    assert judge_answers(answers, REFERENCE, 0.05)["passed"]


@pytest.mark.parametrize("answers", [np.full((2, 3), np.nan), np.full((2, 3), np.inf), np.zeros((2, 4)), np.zeros((1, 3))])
def test_answers_that_are_none_fail(answers: np.ndarray) -> None:
    verdict = judge_answers(answers, REFERENCE, 0.05)
    assert not verdict["passed"]
    assert verdict["reason"]


def test_other_work_in_scope_model_fails() -> None:
    """The same golden answers, but another crop where tensors are fed: seen by comparing the runtimes with each other."""
    passed = {"checked": True, "passed": True}
    reference = np.array([[1.0, 2.0]])
    assert _same_work(passed, reference, reference[:, None] + 1e-6, 0.05)["passed"]
    failed = _same_work(passed, reference, reference[:, None] + 0.2, 0.05)
    assert not failed["passed"]
    assert failed["model_scope_difference"] == pytest.approx(0.2)
    strange = _same_work(passed, reference, np.array([[[1.0, np.nan]]]), 0.05)
    assert not strange["passed"]
    assert "not finite" in strange["reason"]
