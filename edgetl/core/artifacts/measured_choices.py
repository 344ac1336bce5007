"""Automatic choices of a run, based on timing or free memory.

They are stored in the run's config.json and reused by `--resume` and by reruns (`--config`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgetl.core.config.finetune import MAX_EPOCHS, MAX_VIEWS, FinetuneConfig
from edgetl.core.config.options import get_option_fields
from edgetl.core.errors import ConfigError
from edgetl.core.files import read_json
from edgetl.core.typed_json import FieldError, parse_as

_MAX_THREADS = 4096


@dataclass(frozen=True)
class FrozenBlockRuntimes:
    """Runtimes for the frozen blocks, by name: `pytorch-bf16`, `onnxruntime-fp32`."""

    fast: str
    """Runtime for training images."""
    exact: str
    """Runtime for validation images, in float32."""


@dataclass(frozen=True)
class AutoChoices:
    """Choices that depend on timing, free memory or the machine and affect the trained weights.

    None or a missing entry means not decided yet.
    """

    device: Literal["cpu", "cuda"] | None = None
    """Training device."""
    threads: int | None = None
    """PyTorch's CPU threads; sums are split among them, so their number changes the last bits."""
    cache_budget: int | None = None
    """Size limit of the feature cache, bytes."""
    batch: Mapping[str, Any] | None = None
    """Result of `--batch-size auto`; see `edgetl.train.engine.batch_size.BatchFit`."""
    frozen_blocks: Mapping[str, FrozenBlockRuntimes] = field(default_factory=dict)
    """Runtimes for the frozen blocks, by the name of the cut after them."""
    cached: bool | None = None
    """Whether epochs read cached features instead of computing them from the images."""
    views: int | None = None
    """Cached views of each training image."""
    epochs: tuple[int, ...] | None = None
    """Epochs of each phase if planned by `--budget`."""
    ended_after: Mapping[str, int] = field(default_factory=dict)
    """Epochs after which `--budget` stopped a phase early, by phase number."""
    input_device: Literal["cpu", "cuda"] | None = None
    """Device that decodes and augments streamed training images; None if there is no choice."""
    precision: Mapping[str, Literal["fp32", "bf16", "fp16"]] = field(default_factory=dict)
    """Precision of training steps, by phase number."""
    steps: Mapping[str, Literal["eager", "cuda-graph"]] = field(default_factory=dict)
    """Execution mode of training steps, by phase number."""

    def to_json(self) -> dict[str, Any]:
        """Return the section `choices` of config.json."""
        return asdict(self)


@dataclass(frozen=True)
class RecordedRun:
    """Content of a run's config.json that a rerun needs."""

    path: Path
    config: FinetuneConfig
    """Configuration as requested by the user."""
    choices: AutoChoices


def parse_choices(content: Mapping[str, Any]) -> AutoChoices:
    """Parse the section `choices` of config.json; empty if the run ended before any choice.

    Raises:
        FieldError: A field is unknown, has the wrong type, or is out of range.
    """
    choices = parse_as(AutoChoices, content.get("choices") or {}, "choices")
    ranges = {
        "threads": (choices.threads, 1, _MAX_THREADS),
        "cache_budget": (choices.cache_budget, 0, 2**62),
        "views": (choices.views, 0, MAX_VIEWS),
        **{
            f"epochs[{index}]": (count, 0, MAX_EPOCHS)
            for index, count in enumerate(choices.epochs or ())
        },
        **{
            f"ended_after.{phase}": (count, 0, MAX_EPOCHS)
            for phase, count in choices.ended_after.items()
        },
    }
    for name, (value, minimum, maximum) in ranges.items():
        if value is not None and not minimum <= value <= maximum:
            raise FieldError(f"choices.{name} must be {minimum} to {maximum}, got {value}")
    return choices


def read_recorded_run(path: Path) -> RecordedRun:
    """Read the config.json of a run, for `--config`.

    Raises:
        ConfigError: The file cannot be read or is not a run's config.json.
    """
    content = read_json(path, ConfigError, "The run's config.json")
    try:
        # The default number of workers depends on the machine, so the resolved number is used.
        settings = {
            **dict(content["asked"]),
            "workers": content["config"]["workers"],
            "output": None,
            "force": False,
        }
        config = parse_as(FinetuneConfig, settings, "asked", extra="ignore")
        choices = parse_choices(content)
    except (KeyError, TypeError, ValueError) as cause:
        raise ConfigError(
            f"{path} is not the config.json of a run ({cause}). "
            "Give a TOML file or RUN/config.json."
        ) from cause
    return RecordedRun(path, config, choices)


def find_changed_choice_inputs(recorded: FinetuneConfig, config: FinetuneConfig) -> list[str]:
    """Return the names of fields that affect choices and differ from the recorded run."""
    return [
        declared.name
        for declared in get_option_fields(FinetuneConfig)
        if declared.option.affects_choices
        and getattr(recorded, declared.name) != getattr(config, declared.name)
    ]
