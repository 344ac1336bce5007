"""Results of evaluations: reading, validation and limits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgetl.core.artifacts.evaluation import EvaluationResult, read_evaluation
from edgetl.core.config.evaluate import EvaluateConfig, EvaluationLimits, RecallLimit
from edgetl.core.errors import BenchError, ConfigError
from tests.helpers.evaluations import LABELS, make_evaluation
from tests.helpers.json_schema import iterate_schema_errors
from tools.repo.schemas import ARTIFACTS, artifact_schema


def write(result: EvaluationResult, path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(json.dumps(result.to_json(), allow_nan=False))
    path.write_text(json.dumps(content), encoding="utf-8")
    return content


def test_result_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    result = make_evaluation(limits=EvaluationLimits(0.5, (RecallLimit("dog", 0.9),), 0.1))
    content = write(result, path)
    assert (content["schema"], content["kind"]) == (1, "evaluation")
    restored = read_evaluation(path)
    assert restored == result
    assert restored.path == path
    assert restored.limit_checks == result.limit_checks
    schema = artifact_schema(ARTIFACTS["evaluation"])
    assert list(iterate_schema_errors(content, schema)) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(kind="bench"), "not the result of an evaluation"),
        (lambda content: content.pop("labels"), "no field 'labels'"),
        (lambda content: content.update(labels=["cat"]), "do not match the labels"),
        (lambda content: content.update(variants=[]), "no variants"),
        (lambda content: content.update(extra=1), "unknown field 'extra'"),
        (lambda content: content["comparisons"][0].update(candidate="x"), "'x', which is no var"),
        (lambda content: content["limits"].update(min_accuracy=2), "min_accuracy"),
    ],
)
def test_broken_result_is_rejected(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "result.json"
    content = write(make_evaluation(), path)
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(BenchError, match=message):
        read_evaluation(path)


def test_confusion_matrix_has_order_of_labels() -> None:
    result = make_evaluation()
    figures = result.variants[0].figures
    assert figures is not None
    matrix = figures.confusion_matrix(result.labels)
    assert sum(map(sum, matrix)) == result.data.images
    for label, row in zip(LABELS, matrix, strict=True):
        assert sum(row) == figures.per_class[label].images
        assert row[LABELS.index(label)] == figures.per_class[label].correct


def check(limits: EvaluationLimits) -> dict[str, str]:
    """Return the outcome for each variant."""
    result = replace(make_evaluation(), limits=limits)
    return {entry.row: entry.outcome for entry in result.limit_checks}


def test_limits_are_decided_by_whole_interval() -> None:
    figures = make_evaluation().variants[0].figures
    assert figures is not None
    low, high = figures.accuracy.interval
    assert low < figures.accuracy.value < high
    assert check(EvaluationLimits(min_accuracy=low))["fp32"] == "held"
    assert check(EvaluationLimits(min_accuracy=low + 1e-6))["fp32"] == "undecided"
    assert check(EvaluationLimits(min_accuracy=high))["fp32"] == "undecided"
    assert check(EvaluationLimits(min_accuracy=high + 1e-6))["fp32"] == "broken"
    low, high = figures.calibration.calibration_error.interval
    assert check(EvaluationLimits(max_ece=high))["fp32"] == "held"
    assert check(EvaluationLimits(max_ece=high - 1e-6))["fp32"] == "undecided"
    recall = figures.per_class["dog"].recall
    assert recall is not None
    limit = RecallLimit("dog", recall.low)
    assert check(EvaluationLimits(min_recall=(limit,)))["fp32"] == "held"


def test_limit_is_checked_for_every_variant_that_passed() -> None:
    outcomes = check(EvaluationLimits(min_accuracy=0.0))
    assert outcomes == {"fp32": "held", "int8": "held"}


def test_recall_of_class_without_images_is_undecided() -> None:
    result = make_evaluation(
        missing_class=True, limits=EvaluationLimits(min_recall=(RecallLimit("fox", 0.1),))
    )
    entry = result.limit_checks[0]
    assert (entry.outcome, entry.value, entry.why) == ("undecided", None, "fp32: no images of fox")


def test_undecided_limit_says_how_many_images_decide() -> None:
    result = make_evaluation()
    figures = result.variants[0].figures
    assert figures is not None
    bound = figures.accuracy.value - 0.01
    result = replace(result, limits=EvaluationLimits(min_accuracy=bound))
    entry = result.limit_checks[0]
    assert entry.outcome == "undecided"
    assert "the interval contains the limit: at this share, about" in entry.why
    assert f"images would decide, got {result.data.images}" in entry.why


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("good=0.99", RecallLimit("good", 0.99)),
        ("good = 99%", RecallLimit("good", 0.99)),
        ("a=b=0.5", RecallLimit("a=b", 0.5)),
    ],
)
def test_recall_limit_is_parsed(text: str, limit: RecallLimit) -> None:
    assert RecallLimit.parse(text) == limit


@pytest.mark.parametrize("text", ["good", "=0.9", "good=", "good=1.5", "good=-1", "good=x"])
def test_invalid_recall_limit_is_rejected(text: str) -> None:
    with pytest.raises(ConfigError, match=r"good|LABEL=SHARE|not a share"):
        RecallLimit.parse(text)


def test_contradictory_options_are_rejected() -> None:
    with pytest.raises(ConfigError, match="a CSV file lists its images"):
        EvaluateConfig("bundle", "images.csv", split="val")
    with pytest.raises(ConfigError, match="the same file"):
        EvaluateConfig("bundle", "data", output="a.json", predictions="a.json")
    with pytest.raises(ConfigError, match="names dog more than once"):
        EvaluationLimits(min_recall=(RecallLimit("dog", 0.5), RecallLimit("dog", 0.6)))
    with pytest.raises(ConfigError, match="min_accuracy must be <= 1"):
        EvaluationLimits(min_accuracy=90)
