"""Trackers have the metrics of history.jsonl, and a resumed run is one run."""

from __future__ import annotations

import json
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgetl.core.artifacts.run import EpochRecord
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import ConfigError
from edgetl.core.paths import RunDirectory
from edgetl.core.progress import TrainingProgress
from edgetl.train.engine import trainer
from edgetl.train.finetune import finetune, resume
from tests.conftest import ARCHITECTURE, IMAGE_SIZE


class InterruptingProgress(TrainingProgress):
    """Progress that interrupts after the second epoch."""

    def on_epoch_end(self, record: EpochRecord, best: bool) -> None:
        if record.epoch == 2:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def run(
    parts: Path, random_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> RunDirectory:
    """Run of four epochs that was interrupted after two and resumed, with trackers."""
    folder = tmp_path_factory.mktemp("tracked")
    config = FinetuneConfig(
        parts,
        folder / "run",
        ARCHITECTURE,
        str(random_weights),
        IMAGE_SIZE,
        device="cpu",
        workers=0,
        epochs=3,
        finetune_epochs=1,
        tensorboard=True,
        mlflow=str(folder / "mlruns"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "CHECKPOINT_INTERVAL_S", 0.0)
        patch.setattr(trainer.Trainer, "save_if_due", trainer.Trainer.save_checkpoint)
        with pytest.raises(KeyboardInterrupt):
            finetune(config, InterruptingProgress())
    return resume(RunDirectory(folder / "run"))


def history(run: RunDirectory) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.history.read_text().splitlines()]


def test_tensorboard_has_every_epoch_once(run: RunDirectory) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.tensorboard))
    events.Reload()
    for name, field in (
        ("val/accuracy", "val_accuracy"),
        ("train/loss", "train_loss"),
        ("lr", "lr"),
    ):
        scalars = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in scalars] == [1, 2, 3, 4]
        assert [value for _, value in scalars] == pytest.approx(
            [line[field] for line in history(run)], rel=1e-6
        )


def test_mlflow_has_one_run_with_every_epoch(run: RunDirectory) -> None:
    from mlflow import MlflowClient

    content = json.loads(run.mlflow.read_text())
    client = MlflowClient(tracking_uri=content["store"])
    (experiment,) = [entry for entry in client.search_experiments() if entry.name == "edgetl"]
    (mlflow_run,) = client.search_runs([experiment.experiment_id])
    assert mlflow_run.info.run_id == content["run_id"]
    assert mlflow_run.info.status == "FINISHED"
    assert mlflow_run.data.params["model"] == ARCHITECTURE
    last = {
        metric.step: metric.value
        for metric in client.get_metric_history(content["run_id"], "val/accuracy")
    }
    assert last == pytest.approx({line["epoch"]: line["val_accuracy"] for line in history(run)})


def mlflow_config(parts: Path, weights: Path, output: Path, folder: Path) -> FinetuneConfig:
    return FinetuneConfig(
        parts,
        output,
        ARCHITECTURE,
        str(weights),
        IMAGE_SIZE,
        device="cpu",
        workers=0,
        epochs=1,
        finetune_epochs=0,
        mlflow=str(folder),
    )


def test_invalid_mlflow_folder_fails_before_training(
    parts: Path, random_weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    config = mlflow_config(parts, random_weights, tmp_path / "run", tmp_path / "file")
    with pytest.raises((ConfigError, OSError)):
        finetune(config)
    assert not (tmp_path / "run").exists()


def test_missing_tracker_package_names_the_extra(
    parts: Path, random_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgetl.core.registry import convert_import_error

    for name in [name for name in sys.modules if name.partition(".")[0] == "mlflow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    config = mlflow_config(parts, random_weights, tmp_path / "run", tmp_path / "mlruns")
    with pytest.raises(ModuleNotFoundError) as raised:
        finetune(config)
    assert 'pip install "edgetl[mlflow]"' in str(convert_import_error(raised.value))


class WarningProgress(TrainingProgress):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def test_unresponsive_mlflow_server_warns_within_a_minute(
    parts: Path, random_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = f"http://127.0.0.1:{silent.getsockname()[1]}"
        config = FinetuneConfig(
            parts,
            tmp_path / "run",
            ARCHITECTURE,
            str(random_weights),
            IMAGE_SIZE,
            device="cpu",
            workers=0,
            epochs=1,
            finetune_epochs=0,
            mlflow=store,
        )
        progress, start = WarningProgress(), time.monotonic()
        run = finetune(config, progress)
    assert time.monotonic() - start < 60
    assert run.metrics.exists()
    (warning,) = [text for text in progress.warnings if store in text]
    assert "Training continues without it" in warning


def test_mlflow_server_error_warns_once(
    parts: Path, random_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    from mlflow.exceptions import MlflowException

    def refuse(*_: Any, step: int, **__: Any) -> None:
        raise MlflowException(f"Max retries exceeded in epoch {step}\nand more")

    monkeypatch.setattr(mlflow.MlflowClient, "log_metric", refuse)
    config = FinetuneConfig(
        parts,
        tmp_path / "run",
        ARCHITECTURE,
        str(random_weights),
        IMAGE_SIZE,
        device="cpu",
        workers=0,
        epochs=3,
        finetune_epochs=0,
        mlflow=str(tmp_path / "mlruns"),
    )
    progress = WarningProgress()
    run = finetune(config, progress)
    assert run.metrics.exists()
    (warning,) = [text for text in progress.warnings if "--mlflow" in text]
    assert "no longer responds (Max retries exceeded in epoch 1)" in warning
