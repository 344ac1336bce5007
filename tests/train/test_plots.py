"""Mistakes with the evidence for the predicted class, aligned with what the network saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from edgetl.core.artifacts.split import SplitEntry
from edgetl.core.preprocessing import Preprocessing
from edgetl.core.progress import TrainingProgress
from edgetl.device.runtime.preprocessing import resize_and_crop
from edgetl.train.common.precision import ComputeConfig
from edgetl.train.engine.evaluation import Evaluation
from edgetl.train.model.blocks import find_blocks
from edgetl.train.model.factory import AdaptedModel
from edgetl.train.model.head import ClassifierLayer
from edgetl.train.plots import Explainer, draw_evidence, locate_crop, thumbnail, worst_mistakes

PREPROCESSING = Preprocessing(resize=73, crop=64)


class RecordedWarnings(TrainingProgress):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


class Brightness(nn.Module):
    """Bright and dark images; 8 x 8 locations."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.AvgPool2d(8)
        self.scale = nn.Conv2d(3, 1, 1, bias=False)
        self.fc = nn.Linear(1, 2)
        nn.init.constant_(self.scale.weight, 1 / 3)
        self.fc.weight.data = torch.tensor([[1.0], [-1.0]])

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.scale(self.features(images)).mean((2, 3)))


def make_explainer(model: nn.Module) -> tuple[Explainer, list[str]]:
    progress = RecordedWarnings()
    layer = ClassifierLayer("fc", "linear", 1, (), None)
    adapted = AdaptedModel(model.eval(), layer, find_blocks(model, "fc"))
    config = ComputeConfig(torch.device("cpu"), "fp32")
    return Explainer(adapted, PREPROCESSING, config, progress), progress.warnings


def make_photo(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    blots = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    photo = Image.fromarray(blots).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(photo)


@pytest.mark.parametrize(
    "size", [(300, 200), (200, 300), (97, 131), (640, 640), (1000, 333), (40, 41)]
)
@pytest.mark.parametrize("crop", [64, 73])
def test_crop_in_thumbnail_is_what_the_network_sees(size: tuple[int, int], crop: int) -> None:
    preprocessing = Preprocessing(resize=73, crop=crop)
    photo = make_photo(*size)
    left, top, right, bottom = locate_crop(size, preprocessing)
    expected = resize_and_crop(photo, preprocessing).astype(int)

    def difference(shift: int) -> float:
        part = thumbnail(photo)[top + shift : bottom + shift, left + shift : right + shift]
        resized = Image.fromarray(part).resize((crop, crop), Image.Resampling.BILINEAR)
        return float(np.abs(np.asarray(resized).astype(int) - expected).mean())

    assert difference(0) < 5
    if crop == 64:  # otherwise there is nothing around it
        assert difference(0) < 0.7 * min(difference(-4), difference(4))


def test_evidence_lies_where_its_location_is() -> None:
    photo = np.full((150, 100, 3), 120, np.uint8)
    photo[..., 2] = 60
    tile = thumbnail(photo)
    activation_map = np.zeros((8, 8), np.float32)
    activation_map[1, 6] = 3.0
    drawing = draw_evidence(tile, (150, 100), activation_map, PREPROCESSING)
    left, top, right, bottom = locate_crop((150, 100), PREPROCESSING)
    outside = np.ones(tile.shape[:2], bool)
    outside[top:bottom, left:right] = False
    np.testing.assert_array_equal(drawing[outside], tile[outside])
    part = drawing[top:bottom, left:right].astype(int)
    saturation = np.ptp(part, axis=-1)
    row, column = np.unravel_index(int(saturation.argmax()), saturation.shape)
    cell = (bottom - top) / 8
    assert abs(row + 0.5 - 1.5 * cell) < cell / 2
    assert abs(column + 0.5 - 6.5 * cell) < cell / 2
    assert saturation[int(3 * cell) :].max() == 0, "gray where there is no evidence"


def write_entries(folder: Path) -> list[SplitEntry]:
    entries = []
    for number, level in enumerate((20, 45, 90)):
        photo = np.full((90, 120, 3), 235, np.uint8)
        photo[:, :60] = level
        Image.fromarray(photo).save(folder / f"{number}.png")
        entries.append(SplitEntry(folder / f"{number}.png", "bright", "val"))
    return entries


EVALUATION = Evaluation(
    torch.tensor([[0.0, 3.0], [0.0, 1.0], [2.0, 0.0]]), torch.zeros(3, dtype=int)
)


def test_mistakes_are_drawn_with_their_evidence(tmp_path: Path) -> None:
    explainer, warnings = make_explainer(Brightness())
    entries = write_entries(tmp_path)
    count, mistakes = worst_mistakes(EVALUATION, entries, ("bright", "dark"), explainer)
    assert count == len(mistakes) == 2
    assert warnings == []
    for mistake in mistakes:
        assert mistake.predicted == "dark"
        assert mistake.explanation is not None
        assert mistake.explanation.shape == mistake.image.shape
        colors = np.ptp(mistake.explanation.astype(int), axis=-1)
        dark, bright = colors[100:260, 100:170], colors[100:260, 190:260]
        assert dark.mean() > bright.mean() + 80, "the darker half is evidence for dark"


def test_missing_file_is_drawn_blank(tmp_path: Path) -> None:
    explainer, _ = make_explainer(Brightness())
    entries = write_entries(tmp_path)
    entries[0].path.unlink()
    _, (first, second) = worst_mistakes(EVALUATION, entries, ("bright", "dark"), explainer)
    assert (first.file_name, first.explanation) == ("0.png", None)
    assert len(np.unique(first.image)) == 1
    assert second.explanation is not None


class Failing(Brightness):
    def forward(self, images: Tensor) -> Tensor:
        raise RuntimeError("no backward here")


def test_error_of_the_model_is_a_warning(tmp_path: Path) -> None:
    explainer, warnings = make_explainer(Failing())
    entries = write_entries(tmp_path)
    count, mistakes = worst_mistakes(EVALUATION, entries, ("bright", "dark"), explainer)
    assert count == 2
    assert [mistake.explanation for mistake in mistakes] == [None, None]
    assert warnings == ["The mistakes are drawn without activation maps: no backward here"]
