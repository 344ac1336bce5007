"""Experiment tracking with TensorBoard and MLflow, in addition to the run directory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgetl.core.artifacts.run import EpochRecord
from edgetl.core.artifacts.run_config import RUN_FILE_POLICY
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import ConfigError, RunError
from edgetl.core.files import read_json_as, write_json
from edgetl.core.paths import RunDirectory
from edgetl.core.progress import TrainingProgress
from edgetl.core.typed_json import to_json

_EXPERIMENT = "edgetl"
_MLFLOW_TIMEOUTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
"""Environment variables of MLflow's client, whose defaults wait silently for minutes."""


@dataclass(frozen=True)
class MlflowRun:
    """Content of mlflow.json: the run to continue after an interruption."""

    store: str
    """Address of the server or folder."""
    run_id: str


class Tracker(Protocol):
    """Receiver of metrics."""

    def log_epoch(self, record: EpochRecord) -> None:
        """Log the metrics of an epoch."""

    def close(self, finished: bool) -> None:
        """End tracking; `finished` if the run has finished without an error."""


def _tracked_metrics(record: EpochRecord) -> dict[str, float]:
    """Return the metrics of an epoch by their names in the trackers."""
    metrics = {
        "train/loss": record.train_loss,
        "train/accuracy": record.train_accuracy,
        "val/loss": record.val_loss,
        "val/accuracy": record.val_accuracy,
        "lr": record.lr,
        "images_per_second": record.images_per_second,
    }
    return {name: value for name, value in metrics.items() if value is not None}


@contextmanager
def open_trackers(
    config: FinetuneConfig, run: RunDirectory, progress: TrainingProgress, epochs: int = 0
) -> Iterator[Sequence[Tracker]]:
    """Yield the trackers of the configuration.

    A server that does not respond only causes a warning.

    Args:
        config: configuration of the run.
        run: the run directory.
        progress: receiver of warnings.
        epochs: epochs finished earlier; records of later ones in a tracker are discarded or
            overwritten.

    Raises:
        ModuleNotFoundError: a tracker's package is not installed, see EXTRAS in
            edgetl.core.registry.
        ConfigError: the folder of a tracker cannot be used.
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
                f"{cause} Training continues without it; the run directory has all metrics."
            )
    finished = False
    try:
        yield trackers
        finished = True
    finally:
        for tracker in trackers:
            tracker.close(finished)


class _TensorBoardTracker:
    def __init__(self, run: RunDirectory, epochs: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(
            str(run.tensorboard), purge_step=epochs + 1 if epochs else None
        )

    def log_epoch(self, record: EpochRecord) -> None:
        for name, value in _tracked_metrics(record).items():
            self._writer.add_scalar(name, value, record.epoch)
        self._writer.flush()

    def close(self, finished: bool) -> None:
        self._writer.close()


class _MlflowTracker:
    def __init__(
        self, config: FinetuneConfig, run: RunDirectory, store: str, progress: TrainingProgress
    ) -> None:
        for name, value in _MLFLOW_TIMEOUTS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        if "://" not in store:
            # MLflow prefers a database; this allows a folder.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            store = Path(store).expanduser().absolute().as_uri()
        self._error_type = MlflowException
        self._tracking_uri = store
        self._progress = progress
        self._is_unreachable = False
        try:
            self._client = MlflowClient(tracking_uri=store)
            self._run_id = self._resume_run(run, store) or self._create_run(config, run, store)
        except MlflowException as cause:
            raise ConfigError(
                f"--mlflow {store} cannot be used ({str(cause).splitlines()[0]}). "
                "Use a folder or the address of a server."
            ) from cause

    def _resume_run(self, run: RunDirectory, store: str) -> str | None:
        try:
            recorded = read_json_as(MlflowRun, run.mlflow, "The MLflow run", RUN_FILE_POLICY)
            if recorded.store == store and self._client.get_run(recorded.run_id):
                self._client.update_run(recorded.run_id, "RUNNING")
                return recorded.run_id
        except RunError:
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
        write_json(run.mlflow, to_json(MlflowRun(store, run_id)))
        return run_id

    def log_epoch(self, record: EpochRecord) -> None:
        if self._is_unreachable:
            return
        try:
            for name, value in _tracked_metrics(record).items():
                self._client.log_metric(self._run_id, name, value, step=record.epoch)
        except self._error_type as cause:
            self._is_unreachable = True
            self._progress.warn(
                f"--mlflow {self._tracking_uri} no longer responds ({str(cause).splitlines()[0]}). "
                "Training continues without it; the run directory has all metrics."
            )

    def close(self, finished: bool) -> None:
        if not self._is_unreachable:
            with suppress(self._error_type):  # an unreachable server must not lose the run
                self._client.set_terminated(self._run_id, "FINISHED" if finished else "FAILED")
