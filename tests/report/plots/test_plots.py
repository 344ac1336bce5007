from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetl.core.artifacts.run import EpochRecord
from edgetl.report.plots.contact_sheet import MAX_TILES, Mistake, save_mistakes_sheet
from edgetl.report.plots.run_plots import save_confusion_matrix, save_training_curves
from edgetl.report.plots.style import shorten_middle


def ink_share(path: Path) -> float:
    """Return the share of pixels that are not white."""
    with Image.open(path) as image:
        return float((np.asarray(image.convert("L")) < 250).mean())


def epoch(number: int, phase: int = 1, val: float | None = 0.5) -> EpochRecord:
    return EpochRecord(phase, number, 1 / number, 0.5, val, val, 1e-3, 1.0, 100.0)


def mistake(true: str = "cat", predicted: str = "dog") -> Mistake:
    return Mistake(np.full((360, 360, 3), 90, np.uint8), "photo.jpg", true, predicted, 0.9, 0.05)


@pytest.mark.parametrize(
    ("history", "best_epoch"),
    [
        ([epoch(1)], 1),
        ([epoch(1), epoch(2), epoch(3, 2)], 2),
        ([epoch(1, val=None), epoch(2, val=None)], 2),
        ([epoch(1, 2)], None),
    ],
)
def test_training_curves_of_each_kind_of_run(
    tmp_path: Path, history: list[EpochRecord], best_epoch: int | None
) -> None:
    save_training_curves(tmp_path / "curves.png", history, best_epoch)
    assert ink_share(tmp_path / "curves.png") > 0.01


@pytest.mark.parametrize("classes", [2, 12, 40, 300])
def test_confusion_matrix_of_few_and_many_classes(tmp_path: Path, classes: int) -> None:
    labels = [f"class $_{index} with a name that is rather long" for index in range(classes)]
    confusion = np.eye(classes, dtype=int) * 5
    confusion[0, 1] = 3
    save_confusion_matrix(tmp_path / "confusion.png", confusion.tolist(), labels)
    assert ink_share(tmp_path / "confusion.png") > 0.02
    with Image.open(tmp_path / "confusion.png") as image:
        assert max(image.size) < 5000


def test_confusion_matrix_with_empty_class(tmp_path: Path) -> None:
    save_confusion_matrix(tmp_path / "confusion.png", [[2, 0], [0, 0]], ["a", "b"])
    assert ink_share(tmp_path / "confusion.png") > 0.05


@pytest.mark.parametrize("count", [1, 2, 5, MAX_TILES])
def test_mistakes_sheet(tmp_path: Path, count: int) -> None:
    save_mistakes_sheet(
        tmp_path / "mistakes.png", [mistake("a $1$ note", "x" * 60)] * count, count, 100
    )
    assert ink_share(tmp_path / "mistakes.png") > 0.1


@pytest.mark.parametrize("count", [1, 2, MAX_TILES])
def test_explanations_stand_beside_the_mistakes(tmp_path: Path, count: int) -> None:
    image, explanation = (
        np.tile(np.uint8(color), (360, 360, 1)) for color in ((0, 128, 0), (255, 0, 0))
    )
    explained = replace(mistake(), image=image, explanation=explanation)
    mistakes = [explained, *[mistake()] * (count - 1)]
    save_mistakes_sheet(tmp_path / "mistakes.png", mistakes, count, 100)
    with Image.open(tmp_path / "mistakes.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    photo = np.argwhere((pixels == (0, 128, 0)).all(axis=-1))
    red = np.argwhere((pixels == (255, 0, 0)).all(axis=-1))
    (top, left), (bottom, right) = red.min(0), red.max(0)
    assert bottom - top == pytest.approx(right - left, abs=2)
    assert photo.min(0)[0] == pytest.approx(top, abs=2), "both in one row"
    assert 0 < left - (photo.min(0)[1] + right - left) < 20, "side by side"
    assert (pixels[:, [0, -1]] == 255).all(), "the note fits"


def test_plots_without_data_show_a_message(tmp_path: Path) -> None:
    save_mistakes_sheet(tmp_path / "none wrong.png", [], 0, 20)
    save_mistakes_sheet(tmp_path / "none known.png", [], 0, 0)
    save_confusion_matrix(tmp_path / "no matrix.png", None, ["a", "b"])
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(set(files.values())) == 3, "each has its own message"
    assert all(ink_share(tmp_path / name) > 0.005 for name in files)


@pytest.mark.parametrize(
    ("name", "length", "expected"),
    [("short", 10, "short"), ("abcdefghij", 5, "ab…ij"), ("abcdefghij", 10, "abcdefghij")],
)
def test_shorten_middle(name: str, length: int, expected: str) -> None:
    assert shorten_middle(name, length) == expected


def test_confusion_matrix_above_1000_classes_is_a_message(tmp_path: Path) -> None:
    classes = 1001
    save_confusion_matrix(
        tmp_path / "confusion.png",
        [[0] * classes] * classes,
        [str(number) for number in range(classes)],
    )
    with Image.open(tmp_path / "confusion.png") as image:
        assert max(image.size) < 1500
