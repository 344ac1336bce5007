"""A run's config.json: its configuration, data, weights and automatic choices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgetl.core.artifacts.measured_choices import AutoChoices, BatchSizeResult
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import ConfigError, RunError
from edgetl.core.files import ReadPolicy, read_json_as, write_json
from edgetl.core.paths import RunDirectory
from edgetl.core.preprocessing import Preprocessing
from edgetl.core.typed_json import FieldError, in_json, to_json

MAX_CLASSES = 2**16
"""Maximum number of classes, so that a broken file cannot request a head of gigabytes.

ImageNet-21k has 21,841 classes.
"""
RUN_FILE_POLICY = ReadPolicy(
    RunError, "Restore the file, or train again with `edgetl finetune`.", extra="ignore"
)
"""Policy for the files of a run directory.

Fields of other versions are ignored: their effect is in the weights.
"""
_MAX_REASON_LENGTH = 200
"""Maximum characters of a reason in a message, since a broken cell may contain the whole file."""


@dataclass(frozen=True)
class DatasetInfo:
    """Images of a run."""

    fingerprint: str
    """SHA-256 over the paths, labels, splits and pixels of all images."""
    counts: Mapping[str, Mapping[str, int]]
    """Number of images by split and class."""
    rejected: int = 0
    """Number of rejected files."""
    warnings: tuple[str, ...] = ()
    """Problems detected before training."""

    def __post_init__(self) -> None:
        if any(count < 0 for labels in self.counts.values() for count in labels.values()):
            raise FieldError("counts holds a negative number")


@dataclass(frozen=True)
class WeightsInfo:
    """Initial weights of a run."""

    source: str
    """URL, file, name and version of a package, `builtin`, `as built` or `none`."""
    sha256: str | None
    """SHA-256 of the file's bytes, or of the tensors as built; None without weights."""
    license: str | None = field(default=None, metadata=in_json(omit_default=True))
    """SPDX identifier of the weights' license, if their source states it."""


@dataclass(frozen=True)
class ModelCode:
    """Python code of a model of the user's own."""

    root: Path
    """Folder from which the module was imported."""
    module: str
    """Module of the function that returns the model."""
    files: Mapping[str, str]
    """SHA-256 of the module's file and of those that it imports from `root`, by path in `root`."""


@dataclass(frozen=True, kw_only=True)
class RunConfiguration:
    """Content of config.json."""

    config: FinetuneConfig
    """Resolved configuration, with the values that depend on the machine and the data."""
    requested_config: FinetuneConfig | None = field(default=None, metadata=in_json(key="asked"))
    """Configuration as requested by the user; None in runs of versions that could not resume."""
    classes: tuple[str, ...]
    """Class names in the order of the logits."""
    preprocessing: Preprocessing
    versions: Mapping[str, str | None]
    """Version of each package, None if it is missing."""
    data: DatasetInfo
    weights: WeightsInfo
    code: ModelCode | None = field(default=None, metadata=in_json(omit_default=True))
    """Code of a model of the user's own; None for a stock architecture."""
    batch: BatchSizeResult | None = None
    """Result of `--batch-size auto`."""
    choices: AutoChoices = field(default_factory=AutoChoices)
    """Choices by timing or free memory; empty if the run ended before any choice."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.classes) <= MAX_CLASSES or len(set(self.classes)) < len(self.classes):
            raise FieldError(
                f"classes must be 1 to {MAX_CLASSES:,} different names, got {len(self.classes):,}"
            )

    def write(self, run: RunDirectory) -> None:
        """Write config.json.

        Raises:
            OSError: The file cannot be written.
        """
        write_json(run.config, to_json(self))


def read_run_configuration(run: RunDirectory) -> RunConfiguration:
    """Read config.json of a run.

    Raises:
        RunError: The file is missing or broken, or a value has the wrong type or is out of range;
            the message names the first such value.
    """
    return read_json_as(RunConfiguration, run.config, "The run's configuration", RUN_FILE_POLICY)


@dataclass(frozen=True)
class RecordedRun:
    """Configuration and choices of a run to repeat."""

    path: Path
    config: FinetuneConfig
    """Configuration as requested by the user."""
    choices: AutoChoices


def read_recorded_run(path: Path) -> RecordedRun:
    """Read the config.json of a run, for `--config`.

    Raises:
        ConfigError: The file cannot be read or is not a run's config.json.
    """
    try:
        run = read_json_as(RunConfiguration, path, "The run's config.json", RUN_FILE_POLICY)
        if run.requested_config is None:
            raise RunError("It was written by a version that cannot repeat runs.")
    except RunError as cause:
        raise ConfigError(
            f"{path} is not the config.json of a run ({cause}) Give a TOML file or RUN/config.json."
        ) from cause
    # The default number of workers depends on the machine, so the resolved number is used.
    config = replace(run.requested_config, workers=run.config.workers, output=None, force=False)
    return RecordedRun(path, config, run.choices)


def broken_file_error(path: Path, cause: BaseException) -> RunError:
    """Return the error for a file of a run directory that cannot be used."""
    reason = f"it has no column {cause}" if isinstance(cause, KeyError) else str(cause)
    reason = reason.rstrip(".").replace("\n", " ")
    if len(reason) > _MAX_REASON_LENGTH:
        reason = f"{reason[:_MAX_REASON_LENGTH]}..."
    return RunError(f"{path} is broken: {reason}. {RUN_FILE_POLICY.advice}")
