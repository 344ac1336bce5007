"""What a run that is gone on with must still have: its beginnings, its images, its weights."""

from __future__ import annotations

from typing import Any

from edgetl.core.errors import ConfigError, DataError, RunError
from edgetl.core.files import read_json
from edgetl.core.layout import RunDirectory
from edgetl.train.preparing import Prepared


def beginnings(run: RunDirectory) -> dict[str, Any]:
    """What config.json says of a run that has begun and not finished.

    Raises:
        RunError: there is none.
    """
    if not run.config.is_file():
        raise RunError(f"{run.path} holds no run to go on with. `edgetl finetune DATA -o {run.path}` begins one.")
    content = read_json(run.config, RunError, "The run's config.json")
    if "asked" not in content:
        raise RunError(f"{run.path} was begun by an edgetl that could not resume. Train anew with --force.")
    # A checkpoint beside the figures is of a run that was ended before its pictures were drawn.
    if run.metrics.exists() and not run.checkpoint.exists():
        raise RunError(f"{run.path} has finished: there is nothing to go on with. `edgetl export {run.path}` is next.")
    return content


def check_unchanged(prepared: Prepared, content: dict[str, Any]) -> None:
    """Whether images and weights are those that the run began with.

    Raises:
        DataError, ConfigError: they are not.
    """
    data, weights = content["data"], content["weights"]
    if prepared.data.fingerprint != data["fingerprint"] or prepared.data.labels != content["classes"]:
        raise DataError(
            f"The images in {prepared.data.folder} are not those that the run began with. Put them back, or train anew with --force."
        )
    if (prepared.weights.sha256 if prepared.weights else None) != weights["sha256"]:
        raise ConfigError(
            f"The weights {weights['source']} are not those that the run began with. Put them back, or train anew with --force."
        )
