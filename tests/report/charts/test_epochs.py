from __future__ import annotations

from dataclasses import replace

from edgetl.core.artifacts.run import Epoch
from edgetl.report.charts.confusion import draw_matrix, most_confused
from edgetl.report.charts.epochs import Course, draw_over_epochs, draw_over_time


def epochs(count: int, phase: int = 1, first: int = 1) -> tuple[Epoch, ...]:
    return tuple(
        Epoch(
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
    drawn = draw_over_epochs("Accuracy", "accuracy", Course("a", epochs(3), 2))
    assert "kept: epoch 2" in drawn
    assert "phase 2" not in drawn
    assert "phase 2" in draw_over_epochs(
        "Accuracy", "accuracy", Course("a", epochs(3) + epochs(2, 2, 4), 2)
    )


def test_a_single_epoch_without_validation() -> None:
    history = tuple(replace(epoch, val_loss=None, val_accuracy=None) for epoch in epochs(1))
    drawn = draw_over_epochs("Loss", "loss", Course("a", history, 1))
    assert "validation" not in drawn
    assert "at the end 1.000" in drawn


def test_several_runs_are_lines_of_one_drawing_and_those_without_times_left_out() -> None:
    untimed = Course("untimed", tuple(replace(epoch, elapsed=None) for epoch in epochs(3)), 1)
    drawn = draw_over_time(
        "Accuracy", [Course("first", epochs(3), 2), untimed, Course("second", epochs(5), 5)]
    )
    assert "of first and second" in drawn
    assert "untimed" not in drawn
    assert "training" not in drawn


def test_long_runs_are_told_in_minutes_and_hours() -> None:
    assert "minutes since the start" in draw_over_time("Accuracy", [Course("a", epochs(20), 2)])
    assert "hours since the start" in draw_over_time("Accuracy", [Course("a", epochs(120), 2)])


def test_confused_pairs_come_by_count_and_then_by_share() -> None:
    pairs = most_confused([[5, 2, 0], [0, 1, 2], [3, 0, 0]], ["a", "b", "c"])
    assert [(pair.true, pair.predicted, pair.count, pair.images) for pair in pairs] == [
        ("c", "a", 3, 3),
        ("b", "c", 2, 3),
        ("a", "b", 2, 7),
    ]


def test_the_matrix_follows_the_pages_colours() -> None:
    drawn = draw_matrix("Confusion", [[5, 1], [0, 6]], ["$a_", "b"])
    assert "var(--blue)" in drawn
    assert "#0072b2" not in drawn.lower()
    assert "11 of 12 validation images right" in drawn
    assert "$a_" in drawn, "a dollar sign starts no formula"
