"""config.json of a run: what it was asked for, and what it rests on, every value checked where it is read."""

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
"""ImageNet-21k has 21,841; a head for more than this would take a gigabyte before the weights were looked at."""


@dataclass(frozen=True)
class DatasetInfo:
    """The images of a run."""

    fingerprint: str
    """SHA-256 of all paths, labels, parts and pixels."""
    counts: dict[str, dict[str, int]]
    """Images by part and class."""
    rejected: int = 0
    """Files that were left out."""
    warnings: tuple[str, ...] = ()
    """Problems noticed before training."""


@dataclass(frozen=True)
class WeightsInfo:
    """The weights that training began from."""

    source: str
    """A URL, a file, `builtin` or `none`."""
    sha256: str | None
    """SHA-256 of the file's bytes; None without weights."""


@dataclass(frozen=True)
class BatchSizeInfo:
    """A batch size as `--batch-size auto` decided it."""

    batch_size: int
    usual: int
    images_per_second: dict[str, float]
    ended: Literal["memory", "rate", "steps", "not searched"]
    lr_scale: float


@dataclass(frozen=True)
class RunConfiguration:
    """The content of config.json."""

    config: FinetuneConfig
    """Everything resolved: what the machine and the data decided is filled in."""
    classes: tuple[str, ...]
    """In the order of the logits."""
    preprocessing: Preprocessing
    versions: dict[str, str | None]
    data: DatasetInfo
    weights: WeightsInfo
    requested_config: FinetuneConfig | None
    """As the user gave it; None in a run of an edgetl that could not resume."""
    batch: BatchSizeInfo | None
    choices: AutoChoices
    """Decisions by timing or by free memory; empty where the run ended before it decided anything."""
    content: Mapping[str, Any] = field(repr=False)
    """As it stands in the file."""


def read_run_configuration(run: RunDirectory) -> RunConfiguration:
    """Read config.json of a run.

    Raises:
        RunError: missing, damaged, or values of another type or beyond what they may be; the message names the first.
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
            requested_config=_parse_finetune_config(content, "asked")
            if "asked" in content
            else None,
            batch=parse_as(BatchSizeInfo | None, content.get("batch"), "batch"),  # type: ignore[arg-type]
            choices=parse_choices(content),
            content=content,
        )
        _check(configuration)
    except (KeyError, ValueError, ConfigError) as cause:
        reason = (
            f"it has no field {cause}"
            if isinstance(cause, KeyError)
            else str(cause).rstrip(".").replace("\n", " ")
        )
        raise RunError(
            f"{run.config} is broken: {reason}. Restore the file, or train again with `edgetl finetune`."
        ) from cause
    return configuration


def _parse_finetune_config(content: Mapping[str, Any], name: str) -> FinetuneConfig:
    # A field of another edgetl is left out: what it did is in the weights.
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
            f"batch.batch_size and batch.usual must be at least 1, got {batch.batch_size} and {batch.usual}"
        )
