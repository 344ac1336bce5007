"""Reader for a run's config.json: its configuration, data, weights and automatic choices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from edgetl.core.artifacts.measured_choices import AutoChoices, parse_choices
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import ConfigError, RunError
from edgetl.core.files import read_json
from edgetl.core.paths import RunDirectory
from edgetl.core.preprocessing import Preprocessing
from edgetl.core.typed_json import parse_as

MAX_CLASSES = 2**16
"""Maximum number of classes, so that a broken file cannot request a head of gigabytes.

ImageNet-21k has 21,841 classes.
"""


@dataclass(frozen=True)
class DatasetInfo:
    """Images of a run."""

    fingerprint: str
    """SHA-256 over the paths, labels, splits and pixels of all images."""
    counts: dict[str, dict[str, int]]
    """Number of images by split and class."""
    rejected: int = 0
    """Number of rejected files."""
    warnings: tuple[str, ...] = ()
    """Problems detected before training."""


@dataclass(frozen=True)
class WeightsInfo:
    """Initial weights of a run."""

    source: str
    """URL or file, `builtin` or `none`."""
    sha256: str | None
    """SHA-256 of the file's bytes; None without weights."""


@dataclass(frozen=True)
class BatchSizeInfo:
    """Result of `--batch-size auto`."""

    batch_size: int
    usual: int
    images_per_second: dict[str, float]
    ended: Literal["memory", "rate", "steps", "not searched"]
    lr_scale: float


@dataclass(frozen=True)
class RunConfiguration:
    """Content of config.json."""

    config: FinetuneConfig
    """Resolved configuration, with the values that depend on the machine and the data."""
    classes: tuple[str, ...]
    """Class names in the order of the logits."""
    preprocessing: Preprocessing
    versions: dict[str, str | None]
    data: DatasetInfo
    weights: WeightsInfo
    requested_config: FinetuneConfig | None
    """Configuration as requested by the user; None in runs of versions that could not resume."""
    batch: BatchSizeInfo | None
    choices: AutoChoices
    """Choices by timing or free memory; empty if the run ended before any choice."""
    content: Mapping[str, Any] = field(repr=False)
    """Raw content of the file."""


def read_run_configuration(run: RunDirectory) -> RunConfiguration:
    """Read config.json of a run.

    Raises:
        RunError: The file is missing or broken, or a value has the wrong type or is out of range;
            the message names the first such value.
    """
    content = read_json(run.config, RunError, "The run's configuration")
    try:
        configuration = RunConfiguration(
            config=_parse_finetune_config(content, "config"),
            classes=parse_as(tuple[str, ...], content["classes"], "classes"),
            preprocessing=Preprocessing.from_json(
                parse_as(dict[str, Any], content["preprocessing"], "preprocessing")
            ),
            versions=parse_as(dict[str, str | None], content["versions"], "versions"),
            data=parse_as(DatasetInfo, content["data"], "data", extra="ignore"),
            weights=parse_as(WeightsInfo, content["weights"], "weights", extra="ignore"),
            requested_config=_parse_requested_config(content),
            batch=parse_as(BatchSizeInfo | None, content.get("batch"), "batch"),  # type: ignore[arg-type]
            choices=parse_choices(content),
            content=content,
        )
        _check(configuration)
    except (KeyError, ValueError, ConfigError) as cause:
        reason = str(cause).rstrip(".").replace("\n", " ")
        if isinstance(cause, KeyError):
            reason = f"it has no field {cause}"
        raise RunError(
            f"{run.config} is broken: {reason}. "
            "Restore the file, or train again with `edgetl finetune`."
        ) from cause
    return configuration


def _parse_requested_config(content: Mapping[str, Any]) -> FinetuneConfig | None:
    return _parse_finetune_config(content, "asked") if "asked" in content else None


def _parse_finetune_config(content: Mapping[str, Any], name: str) -> FinetuneConfig:
    # Fields of other versions are ignored: their effect is in the weights.
    return parse_as(FinetuneConfig, content[name], name, extra="ignore")


def _check(configuration: RunConfiguration) -> None:
    classes, batch = configuration.classes, configuration.batch
    if not 1 <= len(classes) <= MAX_CLASSES or len(set(classes)) < len(classes):
        raise ValueError(
            f"classes must be 1 to {MAX_CLASSES:,} different names, got {len(classes):,}"
        )
    if any(count < 0 for labels in configuration.data.counts.values() for count in labels.values()):
        raise ValueError("data.counts holds a negative number")
    if batch is not None and min(batch.batch_size, batch.usual) < 1:
        raise ValueError(
            "batch.batch_size and batch.usual must be >= 1, "
            f"got {batch.batch_size} and {batch.usual}"
        )
