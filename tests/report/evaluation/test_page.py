from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgetl.core.artifacts.bench_json import write_result
from edgetl.core.artifacts.evaluation import (
    Estimate,
    EvaluationFigures,
    EvaluationResult,
    average_over_corruptions,
)
from edgetl.core.artifacts.gate import GateResult
from edgetl.core.config.evaluate import EvaluationLimits, RecallLimit
from edgetl.core.errors import ConfigError
from edgetl.report.evaluation.page import render_evaluation_report
from edgetl.report.report import detect_kind, write_report
from tests.helpers.browser import CHROMIUM
from tests.helpers.evaluations import make_evaluation
from tests.helpers.pages import Page, seen_in_browser
from tests.helpers.runs import write_run

LIMITS = EvaluationLimits(min_accuracy=0.99, min_recall=(RecallLimit("cat", 0.5),), max_ece=0.12)


def percent(estimate: Estimate | None) -> str:
    """Return a share with its interval as the page shows it."""
    assert estimate is not None
    return f"{estimate.value:.1%} [{estimate.low:.1%}, {estimate.high:.1%}]"


def number(estimate: Estimate | None, digits: int = 3) -> str:
    assert estimate is not None
    low, high = estimate.interval
    return f"{estimate.value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def figures_of(result: EvaluationResult, index: int = 0) -> EvaluationFigures:
    figures = result.variants[index].figures
    assert figures is not None
    return figures


def fail_variants(result: EvaluationResult, *names: str) -> EvaluationResult:
    variants = tuple(
        replace(variant, figures=None, gate=GateResult.failure("no logits"))
        if variant.name in names
        else variant
        for variant in result.variants
    )
    return replace(result, variants=variants, comparisons=())


def test_page_shows_accuracy_with_intervals() -> None:
    result = make_evaluation(LIMITS, with_corruptions=True)
    page = Page(render_evaluation_report(result))
    assert page.sections == [
        "summary", "limits", "accuracy", "classes", "confusion", "calibration", "risk", "unknown",
        "sets", "groups", "corruptions", "mistakes", "images", "method",
    ]  # fmt: skip
    assert page.outside == []
    figures = figures_of(result)
    low, high = figures.accuracy.interval
    cat = figures.per_class["cat"]
    for words in (
        "Evaluation of mobilenet_v2 on pets",
        f"fp32: accuracy {figures.accuracy.value:.1%} (95% interval {low:.1%} to {high:.1%}) of "
        "150 images (pets/test)",
        f"fp32 {figures.correct} of 150 correct {percent(figures.accuracy)} "
        f"{percent(figures.top_k['2'])} {percent(figures.balanced_accuracy)} "
        f"{number(figures.macro_f1)}",
        f"cat {cat.images} {cat.predicted} {percent(cat.precision)} {percent(cat.recall)} "
        f"{number(cat.f1)}",
        f"{figures.correct} of 150 images correct",
        "fp32 --min-accuracy broken",
        "fp32 --min-recall held",
        "fp32 --max-ece undecided",
        "Limits: 2 broken",
        "pets/test/cat/7.jpg the file is empty (0 bytes).",
        "Left out: 4 images of other classes: bird.",
        "Not scored: 1 image that could not be read.",
        "north fp32 75",
    ):
        assert words in page.text, words
    mistake = figures.mistakes[0]
    row = f"{mistake.path} {mistake.label} {mistake.predicted} {mistake.probability:.1%}"
    assert row in page.text


def test_page_shows_confidence_with_intervals() -> None:
    result = make_evaluation()
    text = Page(render_evaluation_report(result)).text
    figures = figures_of(result)
    calibration, unknown = figures.calibration, figures.unknown
    (first_sets, *_) = figures.prediction_sets
    assert unknown is not None
    assert unknown.unknown_images is not None
    for words in (
        f"{number(calibration.calibration_error)} {number(calibration.brier)} "
        f"{calibration.mean_confidence:.1%} {figures.accuracy.value:.1%}",
        f"fp32 {number(figures.risk_coverage.aurc, 4)}",
        f"fp32 threshold 1 {percent(unknown.rejected)} {percent(unknown.rejected_mistakes)} "
        f"{percent(unknown.accepted_accuracy)} {percent(unknown.unknown_images.caught)} "
        f"{number(unknown.unknown_images.auroc)}",
        "Unknown images: 60 images of cars.",
        f"fp32 90% {percent(first_sets.covered)} {number(first_sets.mean_size, 2)} "
        f"{first_sets.single:.1%} {first_sets.empty:.1%} 0.2",
    ):
        assert words in text, words


def test_difference_is_inconclusive_if_the_interval_contains_0() -> None:
    result = make_evaluation()
    (pair,) = result.comparisons
    for interval, verdict in (
        ((-0.04, 0.02), "inconclusive"),
        ((-0.04, -0.01), "worse"),
        ((0.01, 0.02), "better"),
    ):
        difference = Estimate(sum(interval) / 2, interval)
        changed = replace(result, comparisons=(replace(pair, difference=difference),))
        text = Page(render_evaluation_report(changed)).text
        value, low, high = (f"{100 * share:+.1f}" for share in (difference.value, *interval))
        assert f"int8 fp32 {value} [{low}, {high}] {verdict} {pair.only_candidate}" in text
        sentence = f"{value} points (95% interval {low} to {high}), {verdict}."
        assert f"int8 against fp32 on the same images: {sentence}" in text


def test_page_shows_corruptions_with_means() -> None:
    result = make_evaluation(with_corruptions=True)
    figures = figures_of(result)
    text = Page(render_evaluation_report(result)).text
    noise = [entry for entry in figures.corruptions if entry.kind == "gaussian_noise"]
    cells = [*(entry.accuracy for entry in noise), average_over_corruptions(noise)]
    assert f"gaussian noise {' '.join(map(percent, cells))}" in text
    columns = [
        [entry for entry in figures.corruptions if entry.severity == severity]
        for severity in (1, 2, 3, 4, 5)
    ]
    means = [average_over_corruptions(column) for column in (*columns, figures.corruptions)]
    assert f"mean of all kinds {' '.join(map(percent, means))}" in text


def test_mean_over_corruptions_is_within_its_interval() -> None:
    entries = figures_of(make_evaluation(with_corruptions=True)).corruptions
    mean = average_over_corruptions(entries)
    assert mean.value == pytest.approx(sum(entry.accuracy.value for entry in entries) / 10)
    assert mean.low < mean.value < mean.high
    assert average_over_corruptions(entries[:1]) == entries[0].accuracy


def test_page_without_records_has_no_empty_sections() -> None:
    result = replace(make_evaluation(with_unknown=False), comparisons=())
    variants = tuple(
        replace(variant, figures=replace(figures_of(result, index), groups={}))
        for index, variant in enumerate(result.variants)
    )
    data = replace(result.data, unscored=(), ignored_classes={})
    page = Page(render_evaluation_report(replace(result, variants=variants, data=data)))
    assert page.sections == [
        "summary", "accuracy", "classes", "confusion", "calibration", "risk", "mistakes", "images",
        "method",
    ]  # fmt: skip
    for words in ("unknown", "Differences", "Limits", "Not scored", "Left out", "Corruptions"):
        assert words not in page.text, words


def test_page_is_deterministic() -> None:
    result = make_evaluation(with_corruptions=True)
    assert render_evaluation_report(result) == render_evaluation_report(result)


def test_variant_that_failed_the_gate_has_no_figures() -> None:
    page = Page(render_evaluation_report(fail_variants(make_evaluation(), "int8")))
    assert "int8 failed gate no logits" in page.text
    assert "int8 was not evaluated: no logits." in page.text
    assert "Confusion matrix, int8" not in page.text
    page = Page(render_evaluation_report(fail_variants(make_evaluation(), "fp32", "int8")))
    assert page.sections == ["summary", "images", "method"]


def test_class_without_images_is_named() -> None:
    text = Page(render_evaluation_report(make_evaluation(missing_class=True))).text
    assert "1 class has no images: fox." in text
    assert "fox 0 " in text


def test_many_classes_are_shown_worst_first() -> None:
    names = [f"class {index}" for index in range(45)]
    page = Page(render_evaluation_report(make_evaluation(names=names)))
    assert "The 20 classes with the lowest F1, fp32" in page.text
    assert "All classes, fp32" in page.text
    assert "Confusion matrix" not in page.text
    assert "Most confused classes: 20 of " in page.text


def test_labels_are_escaped() -> None:
    page = Page(render_evaluation_report(make_evaluation(names=["<script>", "$a_$", "b"])))
    assert "script" not in page.tags
    assert "<script>" in page.text


def test_report_recognizes_the_file_of_an_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    write_result(make_evaluation(), path)
    assert detect_kind(path) == "evaluation"
    report = write_report(path, tmp_path / "page.html")
    assert report.kind == "evaluation"
    assert report.to_json()["evaluations"] == [make_evaluation().to_json()]
    assert "Evaluation of mobilenet_v2" in report.page.read_text(encoding="utf-8")
    from_result = write_report(make_evaluation(), tmp_path / "copy.html")
    assert from_result.kind == "evaluation"
    assert (tmp_path / "copy.html").read_text(encoding="utf-8").count("<svg") > 5
    with pytest.raises(ConfigError, match="is an evaluation and cannot share a page"):
        write_report([path, tmp_path / "other.json"])


def test_page_of_a_run_lists_its_evaluations(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    page = write_report(run).page
    assert "Results of edgetl evaluate" not in page.read_text(encoding="utf-8")
    result = make_evaluation()
    write_result(result, run.evaluation / "first.json")
    report = write_report(run)
    assert report.kind == "run"
    assert [evaluation.path for evaluation in report.evaluations] == [run.evaluation / "first.json"]
    figures = figures_of(result, 1)
    words = (
        f"2026-11-28 first.json pets/test 150 images int8 {percent(figures.accuracy)} "
        f"{number(figures.macro_f1)} {number(figures.calibration.calibration_error)}"
    )
    assert words in Page(report.page.read_text(encoding="utf-8")).text


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_page_fits_a_phone_without_console_errors() -> None:
    # Two confusion matrices, two reliability diagrams, risk and coverage, two of corruptions.
    page = render_evaluation_report(make_evaluation(LIMITS, with_corruptions=True))
    assert seen_in_browser(page) == 7
