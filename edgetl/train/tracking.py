"""Figures handed to experiment trackers while a run goes on; the run directory has them all in any case."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import ConfigError, RunError
from edgetl.core.files import read_json, write_json
from edgetl.core.paths import RunDirectory
from edgetl.train.common.progress import EpochRecord, Progress, StepProgress

_EXPERIMENT = "edgetl"
_MLFLOW_TIMEOUTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
"""Environment variables of MLflow's client; its own values wait for minutes without a word."""


class Tracker(Protocol):
    """What keeps figures."""

    def log_metrics(self, number: int, figures: Mapping[str, float]) -> None:
        """Those of an epoch."""

    def close(self, ended: bool) -> None:
        """The run ended well, or did not."""


class TrackedProgress:
    """Progress that is told on, with every epoch's figures given to trackers."""

    def __init__(self, progress: Progress, trackers: list[Tracker]) -> None:
        self._progress, self._trackers = progress, trackers

    def note(self, text: str) -> None:
        """Tell it on."""
        self._progress.note(text)

    def warn(self, text: str) -> None:
        """Tell it on."""
        self._progress.warn(text)

    def on_files_checked(self, done: int, total: int) -> None:
        """Tell it on."""
        self._progress.on_files_checked(done, total)

    def on_features_computed(self, done: int, total: int) -> None:
        """Tell it on."""
        self._progress.on_features_computed(done, total)

    def on_step_end(self, step: StepProgress) -> None:
        """Tell it on."""
        self._progress.on_step_end(step)

    def on_epoch_end(self, record: EpochRecord, best: bool) -> None:
        """Tell it on, and its figures to the trackers."""
        self._progress.on_epoch_end(record, best)
        names = {
            "train/loss": record.train_loss, "train/accuracy": record.train_accuracy, "val/loss": record.val_loss,
            "val/accuracy": record.val_accuracy, "lr": record.lr, "images_per_second": record.images_per_second,
        }  # fmt: skip
        for tracker in self._trackers:
            tracker.log_metrics(
                record.epoch, {name: value for name, value in names.items() if value is not None}
            )


@contextmanager
def track_progress(
    config: FinetuneConfig, run: RunDirectory, progress: Progress, epochs: int = 0
) -> Iterator[Progress]:
    """Progress with the trackers that the configuration asks for.

    Args:
        epochs: that had ended before: what a tracker knows of later ones is forgotten or written over.

    Raises:
        ModuleNotFoundError: a tracker's package is not installed; see EXTRAS in edgetl.core.registry.
        ConfigError: the folder of a tracker cannot be used. A server that does not answer is a warning.
    """
    trackers: list[Tracker] = []
    if config.tensorboard:
        trackers.append(_TensorBoardTracker(run, epochs))
    if config.mlflow is not None:
        try:
            trackers.append(_MlflowTracker(config, run, config.mlflow, progress))
        except ConfigError as cause:
            if not config.mlflow.startswith(("http://", "https://")):
                raise
            progress.warn(
                f"{cause} Training goes on without it; the run directory holds all figures."
            )
    ended = False
    try:
        yield TrackedProgress(progress, trackers) if trackers else progress
        ended = True
    finally:
        for tracker in trackers:
            tracker.close(ended)


class _TensorBoardTracker:
    def __init__(self, run: RunDirectory, epochs: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(
            str(run.tensorboard), purge_step=epochs + 1 if epochs else None
        )

    def log_metrics(self, number: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, number)
        self._writer.flush()

    def close(self, ended: bool) -> None:
        self._writer.close()


class _MlflowTracker:
    def __init__(
        self, config: FinetuneConfig, run: RunDirectory, store: str, progress: Progress
    ) -> None:
        for name, value in _MLFLOW_TIMEOUTS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        if "://" not in store:
            # MLflow would rather have a database; a folder is what was asked for.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            store = Path(store).expanduser().absolute().as_uri()
        self._error_type = MlflowException
        self._tracking_uri, self._progress, self._is_unreachable = store, progress, False
        try:
            self._client = MlflowClient(tracking_uri=store)
            self._run_id = self._resume_run(run, store) or self._create_run(config, run, store)
        except MlflowException as cause:
            raise ConfigError(
                f"--mlflow {store} cannot be used ({str(cause).splitlines()[0]}). Give a folder, or the address of a server."
            ) from cause

    def _resume_run(self, run: RunDirectory, store: str) -> str | None:
        try:
            known = read_json(run.mlflow, RunError, "The MLflow run")
            run_id: str = known["run_id"]
            if known["store"] == store and self._client.get_run(run_id):
                self._client.update_run(run_id, "RUNNING")
                return run_id
        except (RunError, KeyError):
            pass
        return None

    def _create_run(self, config: FinetuneConfig, run: RunDirectory, store: str) -> str:
        experiment = self._client.get_experiment_by_name(_EXPERIMENT)
        experiment_id = (
            experiment.experiment_id if experiment else self._client.create_experiment(_EXPERIMENT)
        )
        run_id: str = self._client.create_run(experiment_id, run_name=run.path.name).info.run_id
        for name, value in config.to_json().items():
            self._client.log_param(run_id, name, value)
        write_json(run.mlflow, {"store": store, "run_id": run_id})
        return run_id

    def log_metrics(self, number: int, figures: Mapping[str, float]) -> None:
        if self._is_unreachable:
            return
        try:
            for name, value in figures.items():
                self._client.log_metric(self._run_id, name, value, step=number)
        except self._error_type as cause:
            self._is_unreachable = True
            self._progress.warn(
                f"--mlflow {self._tracking_uri} no longer answers ({str(cause).splitlines()[0]}). "
                "Training goes on without it; the run directory holds all figures."
            )

    def close(self, ended: bool) -> None:
        if not self._is_unreachable:
            with suppress(self._error_type):  # a server that went away is no reason to lose the run
                self._client.set_terminated(self._run_id, "FINISHED" if ended else "FAILED")
