from __future__ import annotations

from dataclasses import replace

from edgetl.core.artifacts.run import HistoryEpoch
from edgetl.report.charts.confusion import draw_confusion_matrix, rank_confused_pairs
from edgetl.report.charts.epochs import (
    TrainingCurve,
    draw_accuracy_over_time,
    draw_metric_over_epochs,
)


def epochs(count: int, phase: int = 1, first: int = 1) -> tuple[HistoryEpoch, ...]:
    return tuple(
        HistoryEpoch(
            phase,
            number,
            1 / number,
            0.5,
            1 / number,
            0.1 * (number % 9),
            1e-3,
            2.0,
            100.0 * number,
        )
        for number in range(first, first + count)
    )


def test_one_phase_has_no_boundary() -> None:
    drawn = draw_metric_over_epochs("Accuracy", "accuracy", TrainingCurve("a", epochs(3), 2))
    assert "kept: epoch 2" in drawn
    assert "phase 2" not in drawn
    assert "phase 2" in draw_metric_over_epochs(
        "Accuracy", "accuracy", TrainingCurve("a", epochs(3) + epochs(2, 2, 4), 2)
    )


def test_a_single_epoch_without_validation() -> None:
    history = tuple(replace(epoch, val_loss=None, val_accuracy=None) for epoch in epochs(1))
    drawn = draw_metric_over_epochs("Loss", "loss", TrainingCurve("a", history, 1))
    assert "validation" not in drawn
    assert "at the end 1.000" in drawn


def test_several_runs_are_lines_of_one_drawing_and_those_without_times_left_out() -> None:
    untimed = TrainingCurve(
        "untimed", tuple(replace(epoch, elapsed=None) for epoch in epochs(3)), 1
    )
    drawn = draw_accuracy_over_time(
        "Accuracy",
        [TrainingCurve("first", epochs(3), 2), untimed, TrainingCurve("second", epochs(5), 5)],
    )
    assert "of first and second" in drawn
    assert "untimed" not in drawn
    assert "training" not in drawn


def test_long_runs_are_told_in_minutes_and_hours() -> None:
    assert "minutes since the start" in draw_accuracy_over_time(
        "Accuracy", [TrainingCurve("a", epochs(20), 2)]
    )
    assert "hours since the start" in draw_accuracy_over_time(
        "Accuracy", [TrainingCurve("a", epochs(120), 2)]
    )


def test_confused_pairs_come_by_count_and_then_by_share() -> None:
    pairs = rank_confused_pairs([[5, 2, 0], [0, 1, 2], [3, 0, 0]], ["a", "b", "c"])
    assert [(pair.true, pair.predicted, pair.count, pair.true_class_images) for pair in pairs] == [
        ("c", "a", 3, 3),
        ("b", "c", 2, 3),
        ("a", "b", 2, 7),
    ]


def test_the_matrix_follows_the_pages_colours() -> None:
    drawn = draw_confusion_matrix("Confusion", [[5, 1], [0, 6]], ["$a_", "b"])
    assert "var(--blue)" in drawn
    assert "#0072b2" not in drawn.lower()
    assert "11 of 12 validation images right" in drawn
    assert "$a_" in drawn, "a dollar sign starts no formula"
