"""Model and images of a run directory."""

from __future__ import annotations

from edgetl.core.artifacts.run_config import read_run_configuration
from edgetl.core.artifacts.run_metrics import read_trained_run
from edgetl.core.artifacts.split import SplitEntry, read_split
from edgetl.core.paths import RunDirectory, StrPath
from edgetl.train.model.factory import LoadedModel, load_run_model


def load_model(run: StrPath) -> LoadedModel:
    """Load the best epoch's model of a run."""
    return load_run_model(read_trained_run(RunDirectory(run)))


def read_entries(run: StrPath) -> list[SplitEntry]:
    """Read the images of a run."""
    directory = RunDirectory(run)
    return read_split(directory, read_run_configuration(directory))
