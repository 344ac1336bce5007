"""Plots of a run: training curves, confusion matrix and mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from edgetl.core.artifacts.run import EpochRecord
from edgetl.core.artifacts.split import SplitEntry
from edgetl.core.errors import DecodeError
from edgetl.core.paths import RunDirectory
from edgetl.core.preprocessing import Preprocessing
from edgetl.core.progress import TrainingProgress
from edgetl.device.runtime.explanation import overlay_heat
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import resize_and_crop
from edgetl.report.plots.contact_sheet import MAX_TILES, Mistake, save_mistakes_sheet
from edgetl.report.plots.run_plots import save_confusion_matrix, save_training_curves
from edgetl.train.common.precision import ComputeConfig
from edgetl.train.engine.evaluation import Evaluation
from edgetl.train.model.activation_maps import compute_activation_maps
from edgetl.train.model.factory import AdaptedModel

_SIDE = 360
"""Side of a thumbnail, pixels."""
_BLANK = np.full((_SIDE, _SIDE, 3), 242, np.uint8)
"""Gray tile in place of a file that was removed after training."""


@dataclass(frozen=True)
class Explainer:
    """Computation of the evidence for predictions, by location."""

    adapted_model: AdaptedModel
    """Model with the best weights, in evaluation mode."""
    preprocessing: Preprocessing
    compute_config: ComputeConfig
    progress: TrainingProgress

    def explain(
        self, crops: Sequence[NDArray[np.uint8]], classes: Sequence[int]
    ) -> NDArray[np.float32] | None:
        """Return activation maps of a class of each crop, [crops, h, w].

        None if the model has none. An error is only a warning, because the run is complete.

        Args:
            crops: crops after the evaluation preprocessing, uint8 [S, S, 3].
            classes: predicted class of each crop.
        """
        try:
            pixels = torch.from_numpy(np.stack(crops))
            inputs = self.compute_config.to_model_input(pixels, self.preprocessing)
            indices = torch.tensor(classes, device=inputs.device)
            maps = compute_activation_maps(self.adapted_model, inputs, indices)
        except Exception as cause:  # models of a user's own raise anything
            self.progress.warn(f"The mistakes are drawn without activation maps: {cause}")
            return None
        return None if maps is None else maps.numpy()


def draw_plots(
    run: RunDirectory,
    records: Sequence[EpochRecord],
    best: EpochRecord | None,
    val: Evaluation | None,
    entries: Sequence[SplitEntry],
    labels: Sequence[str],
    explainer: Explainer,
) -> None:
    """Draw curves.png, confusion_matrix.png and mistakes.png.

    Args:
        run: the run directory.
        records: records of all epochs.
        best: record of the best epoch.
        val: evaluation of the validation images; None draws a placeholder for the last two plots.
        entries: validation images, in the order of `val`.
        labels: names of the classes.
        explainer: computes the evidence for the mistakes.
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
    count, mistakes = worst_mistakes(val, entries, labels, explainer) if val else (0, [])
    save_mistakes_sheet(run.plots / "mistakes.png", mistakes, count, len(entries))


def worst_mistakes(
    val: Evaluation, entries: Sequence[SplitEntry], labels: Sequence[str], explainer: Explainer
) -> tuple[int, list[Mistake]]:
    """Return the number of mistakes and the most confident ones, most confident first."""
    probabilities = val.probabilities
    predicted = val.predictions.tolist()
    wrong = (val.predictions != val.targets).nonzero().flatten().tolist()
    wrong.sort(key=lambda index: -float(probabilities[index, predicted[index]]))
    photos = {index: _load_photo(entries[index].path, explainer) for index in wrong[:MAX_TILES]}
    explanations = _draw_explanations(photos, predicted, explainer)
    return len(wrong), [
        Mistake(
            image=_BLANK if photo is None else photo.thumbnail,
            file_name=entries[index].path.name,
            true=entries[index].label,
            predicted=labels[predicted[index]],
            probability=float(probabilities[index, predicted[index]]),
            true_probability=float(probabilities[index, val.targets[index]]),
            explanation=explanations.get(index),
        )
        for index, photo in photos.items()
    ]


@dataclass(frozen=True)
class _Photo:
    """Parts of a photo for the sheet; the photo itself may take hundreds of megabytes."""

    thumbnail: NDArray[np.uint8]
    size: tuple[int, int]
    """(height, width)."""
    crop: NDArray[np.uint8]


def _load_photo(path: Path, explainer: Explainer) -> _Photo | None:
    """Return None if the file was removed after training."""
    try:
        image = load_image(path)
    except DecodeError:
        return None
    height, width, _ = image.shape
    return _Photo(
        thumbnail(image), (height, width), resize_and_crop(image, explainer.preprocessing)
    )


def _draw_explanations(
    photos: Mapping[int, _Photo | None], predicted: Sequence[int], explainer: Explainer
) -> dict[int, NDArray[np.uint8]]:
    readable = {index: photo for index, photo in photos.items() if photo is not None}
    if not readable:
        return {}
    crops = [photo.crop for photo in readable.values()]
    maps = explainer.explain(crops, [predicted[index] for index in readable])
    if maps is None:
        return {}
    return {
        index: draw_evidence(photo.thumbnail, photo.size, activation_map, explainer.preprocessing)
        for (index, photo), activation_map in zip(readable.items(), maps, strict=True)
    }


def thumbnail(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the image padded to a square, uint8 [360, 360, 3].

    It is not cropped, because the cut-off part may explain a mistake.
    """
    return np.asarray(ImageOps.pad(Image.fromarray(image), (_SIDE, _SIDE), color=(242, 242, 242)))


def draw_evidence(
    tile: NDArray[np.uint8],
    size: tuple[int, int],
    activation_map: NDArray[np.float32],
    preprocessing: Preprocessing,
) -> NDArray[np.uint8]:
    """Return a thumbnail with evidence in color on the part of the photo that the network sees.

    Args:
        tile: the thumbnail, uint8 [360, 360, 3].
        size: (height, width) of the photo.
        activation_map: evidence by location of the network's crop, [h, w], at least 0.
        preprocessing: resize and crop of the photo.
    """
    left, top, right, bottom = locate_crop(size, preprocessing)
    peak = float(activation_map.max())
    scaled = activation_map / np.float32(peak) if peak > 0 else activation_map
    # A location is the center of its cell, as in Pillow's resize.
    heat = Image.fromarray(scaled).resize((right - left, bottom - top), Image.Resampling.BILINEAR)
    drawing = tile.copy()
    part = drawing[top:bottom, left:right]
    drawing[top:bottom, left:right] = overlay_heat(part, np.asarray(heat))
    return drawing


def locate_crop(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int, int, int]:
    """Return the box (left, top, right, bottom) of the network's crop in a photo's thumbnail.

    Args:
        size: (height, width) of the photo.
        preprocessing: resize and crop of the photo.
    """
    top, left = preprocessing.compute_crop_offset(*preprocessing.compute_resized_size(*size))
    low_y, high_y = _locate_in_thumbnail(top, preprocessing, size[0], size)
    low_x, high_x = _locate_in_thumbnail(left, preprocessing, size[1], size)
    return low_x, low_y, high_x, high_y


def _locate_in_thumbnail(
    offset: int, preprocessing: Preprocessing, length: int, size: tuple[int, int]
) -> tuple[int, int]:
    """Return the first pixel of the crop along an axis of this length, and the one behind it."""
    scale = _SIDE / max(size)
    margin = (_SIDE - scale * length) / 2
    # Both axes of the photo are resized by the same factor.
    step = scale * min(size) / preprocessing.resize
    low = round(margin + step * offset)
    return low, max(low + 1, round(margin + step * (offset + preprocessing.crop)))
