"""Decisions of a run by timing or by free memory: kept in its config.json, taken again by `--resume` and by a rerun."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from edgetl.core.config.finetune import MAX_EPOCHS, MAX_VIEWS, FinetuneConfig
from edgetl.core.errors import ConfigError
from edgetl.core.files import read_json
from edgetl.core.typed_json import FieldError, parse_as

_MAX_THREADS = 4096


@dataclass(frozen=True)
class FrozenBlockRuntimes:
    """Names of the runtimes that compute the frozen blocks, such as `pytorch-bf16` or `onnxruntime-fp32`."""

    fast: str
    """For training images."""
    exact: str
    """For validation images, in float32."""


@dataclass(frozen=True)
class AutoChoices:
    """Every decision that depends on a clock, on free memory or on the machine, and that changes the trained weights.

    What is None or absent has not been decided yet.
    """

    device: Literal["cpu", "cuda"] | None = None
    """Where the network is trained."""
    threads: int | None = None
    """Threads of PyTorch on the CPU: sums are split among them, so their number changes the last bits."""
    cache_budget: int | None = None
    """Bytes for activations."""
    batch: Mapping[str, Any] | None = None
    """How `--batch-size auto` was decided; see `edgetl.train.engine.batch_size.BatchFit`."""
    frozen_blocks: Mapping[str, FrozenBlockRuntimes] = field(default_factory=dict)
    """By the name of the cut that they lead to."""
    cached: bool | None = None
    """Whether epochs read cached activations; otherwise every epoch computes them from the images."""
    views: int | None = None
    """Cached views of each training image."""
    epochs: tuple[int, ...] | None = None
    """Epochs of each phase, where `--budget` planned them."""
    ended_after: Mapping[str, int] = field(default_factory=dict)
    """Phase number to the epochs after which `--budget` ended it early."""
    input_device: Literal["cpu", "cuda"] | None = None
    """Where streamed training images are decoded and augmented; None where there is nothing to choose."""
    precision: Mapping[str, Literal["fp32", "bf16", "fp16"]] = field(default_factory=dict)
    """Arithmetic of training steps, by phase number."""
    steps: Mapping[str, Literal["eager", "cuda-graph"]] = field(default_factory=dict)
    """How training steps are launched, by phase number."""

    def to_json(self) -> dict[str, Any]:
        """Return its fields as the section `choices` of config.json."""
        return asdict(self)


@dataclass(frozen=True)
class RecordedRun:
    """A run's config.json as a rerun reads it."""

    path: Path
    config: FinetuneConfig
    """As the user gave it."""
    choices: AutoChoices


def parse_choices(content: Mapping[str, Any]) -> AutoChoices:
    """Read the section `choices` of a run's config.json; empty where the run ended before it decided anything.

    Raises:
        FieldError: the section is not what edgetl writes.
    """
    choices = parse_as(AutoChoices, content.get("choices") or {}, "choices")
    numbers = {
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
    for name, (value, least, most) in numbers.items():
        if value is not None and not least <= value <= most:
            raise FieldError(f"choices.{name} must be {least} to {most}, got {value}")
    return choices


def read_recorded_run(path: Path) -> RecordedRun:
    """Read the config.json of a run, for `--config`.

    Raises:
        ConfigError: it cannot be read, or is not a run's config.json.
    """
    content = read_json(path, ConfigError, "The run's config.json")
    try:
        asked, resolved = dict(content["asked"]), content["config"]
        # As many workers as then: the default depends on the machine.
        settings = {**asked, "workers": resolved["workers"], "output": None, "force": False}
        config, choices = (
            parse_as(FinetuneConfig, settings, "asked", extra="ignore"),
            parse_choices(content),
        )
    except (KeyError, TypeError, ValueError) as cause:
        raise ConfigError(
            f"{path} is not the config.json of a run ({cause}). Give --config a TOML file or RUN/config.json."
        ) from cause
    return RecordedRun(path, config, choices)


def find_changed_choice_inputs(recorded: FinetuneConfig, config: FinetuneConfig) -> list[str]:
    """Return the fields that choices depend on and in which `config` differs from the recorded run."""
    return [
        item.name
        for item in fields(FinetuneConfig)
        if item.name in _CHOICE_INPUTS
        and getattr(recorded, item.name) != getattr(config, item.name)
    ]


_CHOICE_INPUTS = frozenset({
    "model", "image_size", "epochs", "unfreeze", "finetune_epochs", "batch_size", "batch_norm", "budget_s", "head_width", "augment",
    "augment_file", "views", "device", "input_device", "precision", "cache_budget", "compile", "deterministic",
})  # fmt: skip
"""With another value of one of these, a choice could be one that was never open, or not be needed."""
