"""What the plots of a run show; the drawing itself is in edgetl.report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from edgetl.core.errors import DecodeError
from edgetl.core.paths import RunDirectory
from edgetl.device.runtime.images import load_image
from edgetl.report.plots.contact_sheet import MAX_TILES, Mistake, save_mistakes_sheet
from edgetl.report.plots.run_plots import save_confusion_matrix, save_training_curves
from edgetl.train.common.progress import EpochRecord
from edgetl.train.data.splits import SplitEntry
from edgetl.train.engine.evaluation import Evaluation


def draw_plots(
    run: RunDirectory,
    records: Sequence[EpochRecord],
    best: EpochRecord | None,
    val: Evaluation | None,
    rows: Sequence[SplitEntry],
    labels: Sequence[str],
) -> None:
    """Draw curves.png, and of validation images confusion_matrix.png and mistakes.png, which say so where there are none."""
    run.plots.mkdir(exist_ok=True)
    save_training_curves(
        run.plots / "curves.png",
        [record.to_json() for record in records],
        best.epoch if best else None,
    )
    save_confusion_matrix(
        run.plots / "confusion_matrix.png", val.confusion_matrix() if val else None, labels
    )
    wrong, found = worst_mistakes(val, rows, labels) if val else (0, [])
    save_mistakes_sheet(run.plots / "mistakes.png", found, wrong, len(rows))


def worst_mistakes(
    val: Evaluation, rows: Sequence[SplitEntry], labels: Sequence[str]
) -> tuple[int, list[Mistake]]:
    """(number of mistakes, those that the network was surest of, the surest first)."""
    probabilities, predicted = val.probabilities, val.predictions
    wrong = (predicted != val.targets).nonzero().flatten().tolist()
    wrong.sort(key=lambda index: -float(probabilities[index, predicted[index]]))
    return len(wrong), [
        Mistake(
            image=_load_thumbnail(rows[index].path),
            file_name=rows[index].path.name,
            true=rows[index].label,
            predicted=labels[int(predicted[index])],
            probability=float(probabilities[index, predicted[index]]),
            true_probability=float(probabilities[index, val.targets[index]]),
        )
        for index in wrong[:MAX_TILES]
    ]


def _load_thumbnail(path: Path) -> NDArray[np.uint8]:
    try:
        return thumbnail(load_image(path))
    except DecodeError:  # gone since it was trained on, which costs its picture and nothing else
        return np.full((360, 360, 3), 242, np.uint8)


def thumbnail(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The whole photo on a square, uint8 [360, 360, 3]: what a crop would cut off may be the reason of a mistake."""
    return np.asarray(ImageOps.pad(Image.fromarray(image), (360, 360), color=(242, 242, 242)))
