from __future__ import annotations

from dataclasses import replace

from edgetl.core.artifacts.run import EpochRecord
from edgetl.report.charts.confusion import draw_confusion_matrix, rank_confused_pairs
from edgetl.report.charts.epochs import (
    TrainingCurve,
    draw_accuracy_over_time,
    draw_metric_over_epochs,
)


def epochs(count: int, phase: int = 1, first: int = 1) -> tuple[EpochRecord, ...]:
    return tuple(
        EpochRecord(
            phase,
            number,
            1 / number,
            0.5,
            1 / number,
            0.1 * (number % 9),
            1e-3,
            2.0,
            60.0,
            100.0 * number,
        )
        for number in range(first, first + count)
    )


def test_phase_boundary_is_drawn_only_with_two_phases() -> None:
    figure = draw_metric_over_epochs("Accuracy", "accuracy", TrainingCurve("a", epochs(3), 2))
    assert "best: epoch 2" in figure
    assert "phase 2" not in figure
    assert "phase 2" in draw_metric_over_epochs(
        "Accuracy", "accuracy", TrainingCurve("a", epochs(3) + epochs(2, 2, 4), 2)
    )


def test_loss_of_single_epoch_without_validation() -> None:
    history = tuple(replace(epoch, val_loss=None, val_accuracy=None) for epoch in epochs(1))
    figure = draw_metric_over_epochs("Loss", "loss", TrainingCurve("a", history, 1))
    assert "validation" not in figure
    assert "1.000 at the end" in figure


def test_accuracy_over_time_skips_runs_without_times() -> None:
    untimed = TrainingCurve(
        "untimed", tuple(replace(epoch, elapsed=None) for epoch in epochs(3)), 1
    )
    figure = draw_accuracy_over_time(
        "Accuracy",
        [TrainingCurve("first", epochs(3), 2), untimed, TrainingCurve("second", epochs(5), 5)],
    )
    assert "in total: first and second" in figure
    assert "untimed" not in figure
    assert "training" not in figure


def test_time_axis_of_long_runs_uses_minutes_or_hours() -> None:
    assert "minutes since the start" in draw_accuracy_over_time(
        "Accuracy", [TrainingCurve("a", epochs(20), 2)]
    )
    assert "hours since the start" in draw_accuracy_over_time(
        "Accuracy", [TrainingCurve("a", epochs(120), 2)]
    )


def test_confused_pairs_are_ranked_by_count_then_share() -> None:
    pairs = rank_confused_pairs([[5, 2, 0], [0, 1, 2], [3, 0, 0]], ["a", "b", "c"])
    assert [(pair.true, pair.predicted, pair.count, pair.true_class_images) for pair in pairs] == [
        ("c", "a", 3, 3),
        ("b", "c", 2, 3),
        ("a", "b", 2, 7),
    ]


def test_confusion_matrix_uses_css_colors() -> None:
    figure = draw_confusion_matrix("Confusion", [[5, 1], [0, 6]], ["$a_", "b"])
    assert "var(--blue)" in figure
    assert "#0072b2" not in figure.lower()
    assert "11 of 12 validation images correct" in figure
    assert "$a_" in figure, "a dollar sign is not parsed as math"
