"""What a run that is gone on with must still have: its beginnings, its images, its weights."""

from __future__ import annotations

from edgetl.core.errors import ConfigError, DataError, RunError
from edgetl.core.layout import RunDirectory
from edgetl.core.run_configuration import RunConfiguration, read_run_configuration
from edgetl.train.preparing import Prepared


def beginnings(run: RunDirectory) -> RunConfiguration:
    """What config.json says of a run that has begun and not finished.

    Raises:
        RunError: there is none, or it is broken.
    """
    if not run.config.is_file():
        raise RunError(
            f"{run.path} holds no run to go on with. `edgetl finetune DATA -o {run.path}` begins one."
        )
    configuration = read_run_configuration(run)
    if configuration.asked is None:
        raise RunError(
            f"{run.path} was begun by an edgetl that could not resume. Train anew with --force."
        )
    # A checkpoint beside the figures is of a run that was ended before its pictures were drawn.
    if run.metrics.exists() and not run.checkpoint.exists():
        raise RunError(
            f"{run.path} has finished: there is nothing to go on with. `edgetl export {run.path}` is next."
        )
    return configuration


def check_unchanged(prepared: Prepared, began: RunConfiguration) -> None:
    """Whether images and weights are those that the run began with.

    Raises:
        DataError, ConfigError: they are not.
    """
    if prepared.data.fingerprint != began.data.fingerprint or prepared.data.labels != list(
        began.classes
    ):
        raise DataError(
            f"The images in {prepared.data.folder} are not those that the run began with. Put them back, or train anew with --force."
        )
    if (prepared.weights.sha256 if prepared.weights else None) != began.weights.sha256:
        raise ConfigError(
            f"The weights {began.weights.source} are not those that the run began with. Put them back, or train anew with --force."
        )
