"""Training with images that change or disappear during the run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetl.core.artifacts.run import EpochRecord
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import DataError
from edgetl.core.paths import RunDirectory
from edgetl.core.progress import TrainingProgress
from edgetl.train.engine import trainer
from edgetl.train.finetune import finetune, resume
from tests.conftest import ARCHITECTURE, IMAGE_SIZE

PHOTO = "train/good/good_0000.jpg"


class AfterFirstEpoch(TrainingProgress):
    """Progress that calls a function after the first epoch."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function

    def on_epoch_end(self, record: EpochRecord, best: bool) -> None:
        if record.epoch == 1:
            self._function()


@pytest.fixture
def config(parts: Path, random_weights: Path, tmp_path: Path) -> FinetuneConfig:
    shutil.copytree(parts, tmp_path / "data")
    return FinetuneConfig(
        tmp_path / "data", tmp_path / "run", ARCHITECTURE, str(random_weights), IMAGE_SIZE,
        device="cpu", precision="fp32", workers=0, epochs=2, finetune_epochs=1, cache_budget=0,
    )  # fmt: skip


def remove(photo: Path) -> None:
    photo.rename(photo.with_suffix(".away"))


def replace_photo(photo: Path) -> None:
    photo.rename(photo.with_suffix(".away"))
    shutil.copy(photo.parent / "good_0001.jpg", photo)


@pytest.mark.parametrize("modify", [remove, replace_photo])
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_run_resumes_when_changed_image_is_restored(
    modify: Callable[[Path], None],
    workers: int,
    config: FinetuneConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trainer, "CHECKPOINT_INTERVAL_S", 0.0)
    settings = FinetuneConfig.from_json({**config.to_json(), "workers": workers})
    photo = settings.data / PHOTO
    with pytest.raises(DataError) as error:
        finetune(settings, AfterFirstEpoch(lambda: modify(photo)))
    message = str(error.value)
    assert "\n" not in message
    assert str(photo) in message
    assert ("cannot be read" if modify is remove else "has changed since training began") in message
    assert settings.output is not None
    assert "Restore the file. Resume from the last checkpoint" in message
    assert f"edgetl finetune --resume {settings.output}" in message
    photo.with_suffix(".away").rename(photo)
    assert resume(RunDirectory(settings.output)).metrics.exists()


@pytest.mark.usefixtures("plots")
def test_cached_images_may_disappear(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = config.data
    cached: dict[str, Any] = {**config.to_json(), "cache_budget": None}
    run = finetune(
        FinetuneConfig.from_json(cached),
        AfterFirstEpoch(lambda: data.rename(data.with_name("elsewhere"))),
    )
    assert run.metrics.exists()
    assert (run.plots / "mistakes.png").exists()
