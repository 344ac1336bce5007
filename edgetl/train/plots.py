"""Plots of a run: training curves, confusion matrix and mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from edgetl.core.artifacts.run import EpochRecord
from edgetl.core.artifacts.split import SplitEntry
from edgetl.core.errors import DecodeError
from edgetl.core.paths import RunDirectory
from edgetl.device.runtime.images import load_image
from edgetl.report.plots.contact_sheet import MAX_TILES, Mistake, save_mistakes_sheet
from edgetl.report.plots.run_plots import save_confusion_matrix, save_training_curves
from edgetl.train.engine.evaluation import Evaluation


def draw_plots(
    run: RunDirectory,
    records: Sequence[EpochRecord],
    best: EpochRecord | None,
    val: Evaluation | None,
    entries: Sequence[SplitEntry],
    labels: Sequence[str],
) -> None:
    """Draw curves.png, confusion_matrix.png and mistakes.png.

    Args:
        run: the run directory.
        records: records of all epochs.
        best: record of the best epoch.
        val: evaluation of the validation images; None draws a placeholder for the last two plots.
        entries: validation images, in the order of `val`.
        labels: names of the classes.
    """
    run.plots.mkdir(exist_ok=True)
    save_training_curves(
        run.plots / "curves.png",
        records,
        best.epoch if best else None,
    )
    save_confusion_matrix(
        run.plots / "confusion_matrix.png", val.confusion_matrix() if val else None, labels
    )
    count, mistakes = worst_mistakes(val, entries, labels) if val else (0, [])
    save_mistakes_sheet(run.plots / "mistakes.png", mistakes, count, len(entries))


def worst_mistakes(
    val: Evaluation, entries: Sequence[SplitEntry], labels: Sequence[str]
) -> tuple[int, list[Mistake]]:
    """Return the number of mistakes and the most confident ones, most confident first."""
    probabilities = val.probabilities
    predicted = val.predictions
    wrong = (predicted != val.targets).nonzero().flatten().tolist()
    wrong.sort(key=lambda index: -float(probabilities[index, predicted[index]]))
    return len(wrong), [
        Mistake(
            image=_load_thumbnail(entries[index].path),
            file_name=entries[index].path.name,
            true=entries[index].label,
            predicted=labels[int(predicted[index])],
            probability=float(probabilities[index, predicted[index]]),
            true_probability=float(probabilities[index, val.targets[index]]),
        )
        for index in wrong[:MAX_TILES]
    ]


def _load_thumbnail(path: Path) -> NDArray[np.uint8]:
    try:
        return thumbnail(load_image(path))
    except DecodeError:
        # The file was removed after training: show a gray tile.
        return np.full((360, 360, 3), 242, np.uint8)


def thumbnail(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the image padded to a square, uint8 [360, 360, 3].

    It is not cropped, because the cut-off part may explain a mistake.
    """
    return np.asarray(ImageOps.pad(Image.fromarray(image), (360, 360), color=(242, 242, 242)))
