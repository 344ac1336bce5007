"""State of a training run: what a checkpoint holds, validated when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgetl.core.artifacts.run import EpochRecord
from edgetl.core.artifacts.run_metrics import StepReport
from edgetl.core.config.finetune import MAX_EPOCHS
from edgetl.core.typed_json import FieldError, in_json, parse_as, to_json
from edgetl.train.engine.checkpoint import checkpoint_errors, read_checkpoint, write_checkpoint
from edgetl.train.engine.phases import Phase

_MAX_PHASES = 2
_MAX_COUNT = 2**53


@dataclass(frozen=True)
class RankState:
    """State of one process within an epoch."""

    images_done: int = field(metadata=in_json(key="seen"))
    """Images trained in this epoch."""
    metric_sums: tuple[float, float] = field(metadata=in_json(key="totals"))
    """Sum of the losses and number of correct predictions."""
    mixup_generator: Mapping[str, Any] = field(metadata=in_json(key="mixing"))
    """State of NumPy's generator for mixup."""

    def __post_init__(self) -> None:
        try:
            np.random.default_rng(0).bit_generator.state = dict(self.mixup_generator)
        except (ValueError, TypeError, KeyError, OverflowError) as cause:
            raise FieldError(f"the state of NumPy's generator is invalid ({cause})") from cause


@dataclass(frozen=True, kw_only=True)
class PhaseLoopValues:
    """State of a `PhaseLoop` except its tensors."""

    epochs_done: int = field(metadata=in_json(key="done"))
    epochs_since_best: int = field(metadata=in_json(key="since_better"))
    slowest_epoch_s: float = field(metadata=in_json(key="slowest"))
    batches_done: int = field(metadata=in_json(key="batches"))
    """Batches trained in this epoch."""
    lr: float
    elapsed_s: float = field(metadata=in_json(key="spent"))
    """Seconds of this epoch so far."""
    next_step: int = field(metadata=in_json(key="step"))
    """Index of the phase's next step."""
    ranks: tuple[RankState, ...]
    ema_updates: int = field(metadata=in_json(key="averaged_steps"))
    scaler: Mapping[str, Any]
    """State of the gradient scaler."""
    frozen_digests: Mapping[str, str] = field(metadata=in_json(key="frozen"))
    """SHA-256 of each frozen tensor."""

    def __post_init__(self) -> None:
        _check_count("done", self.epochs_done)
        _check_count("since_better", self.epochs_since_best)
        _check_count("batches", self.batches_done)
        _check_count("step", self.next_step)
        _check_count("averaged_steps", self.ema_updates)


@dataclass(frozen=True)
class PhaseLoopState:
    """State of a `PhaseLoop`."""

    values: PhaseLoopValues
    optimizer: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    """Averaged weights by their index; empty without averaging."""


@dataclass(frozen=True, kw_only=True)
class TrainerValues:
    """State of a `Trainer` except its tensors and its current loop."""

    processes: int
    phase_index: int = field(metadata=in_json(key="stage"))
    """Index of the current phase, counted from 0."""
    phase: Phase | None
    """The current phase as it is trained; None between two phases."""
    records: tuple[EpochRecord, ...]
    best_epoch: int | None = field(metadata=in_json(key="best"))
    seconds: Mapping[str, float]
    elapsed_s: float = field(metadata=in_json(key="elapsed"))
    """Seconds since the start of the run."""
    trainable_parameters: int = field(metadata=in_json(key="trainable"))
    stop_reason: str | None = field(metadata=in_json(key="ended"))
    step_reports: Mapping[str, StepReport] = field(
        default_factory=dict, metadata=in_json(key="steps")
    )
    """Reports by the number of the phase."""

    def __post_init__(self) -> None:
        _check_count("stage", self.phase_index, _MAX_PHASES)
        if self.phase is not None:
            _check_count("phase.epochs", self.phase.epochs, MAX_EPOCHS)
        if any(not name.isascii() or not name.isdecimal() for name in self.step_reports):
            raise FieldError("steps is not numbered by phase")
        if self.best_epoch is not None and self.best_record is None:
            raise FieldError(f"epoch {self.best_epoch} is the best and is not among its records")

    @property
    def best_record(self) -> EpochRecord | None:
        """The record of the best epoch."""
        return next((record for record in self.records if record.epoch == self.best_epoch), None)


@dataclass(frozen=True)
class TrainerState:
    """State of a `Trainer`."""

    values: TrainerValues
    model: Mapping[str, Tensor]
    best_weights: Mapping[str, Tensor]
    """Weights of the best epoch; empty before the first one has ended."""
    generators: Mapping[str, Tensor]
    """States of PyTorch's random generators, by `rank/device`."""
    loop: PhaseLoopState | None
    """State of the current phase; None between two phases."""

    def __post_init__(self) -> None:
        processes = self.values.processes
        if self.loop is not None:
            ranks = self.loop.values.ranks
            if len(ranks) != processes or self.values.phase is None:
                raise FieldError("the state of its last epoch is incomplete")
        expected = torch.get_rng_state()
        for rank in range(processes):
            generator = self.generators.get(f"{rank}/cpu")
            if (
                generator is None
                or generator.dtype != expected.dtype
                or generator.shape != expected.shape
            ):
                raise FieldError(f"the random generator of process {rank} is missing or invalid")

    def check_phases(self, phases: int) -> None:
        """Check that the current phase exists in a run of `phases` phases.

        Raises:
            FieldError: if it does not.
        """
        index = self.values.phase_index
        if index > phases:
            raise FieldError(f"it is in phase {index + 1} and config.json has {phases}")


def write_training_checkpoint(path: Path, state: TrainerState) -> None:
    """Write a checkpoint.

    Raises:
        OSError: if it cannot be written; the previous checkpoint is unchanged.
    """
    facts = {**to_json(state.values), "epochs": None}
    parts = {"network": state.model, "best": state.best_weights, "generator": state.generators}
    if state.loop is not None:
        facts["epochs"] = to_json(state.loop.values)
        parts |= {"optimiser": state.loop.optimizer, "average": state.loop.average}
    write_checkpoint(path, parts, facts)


def read_training_checkpoint(path: Path) -> TrainerState:
    """Read and validate a checkpoint.

    Raises:
        RunError: if it is damaged, or its facts or random generators are invalid.
    """
    checkpoint = read_checkpoint(path)
    with checkpoint_errors(path):
        facts = parse_as(dict[str, Any], checkpoint.facts, "facts")
        if "epochs" not in facts:
            raise FieldError("facts has no field 'epochs'")
        epochs = facts.pop("epochs")
        loop = None
        if epochs is not None:
            loop = PhaseLoopState(
                parse_as(PhaseLoopValues, epochs, "facts.epochs"),
                checkpoint.part("optimiser"),
                checkpoint.part("average"),
            )
        return TrainerState(
            parse_as(TrainerValues, facts, "facts"),
            checkpoint.part("network"),
            checkpoint.part("best"),
            checkpoint.part("generator"),
            loop,
        )


def _check_count(name: str, value: int, maximum: int = _MAX_COUNT) -> None:
    if not 0 <= value <= maximum:
        raise FieldError(f"{name} must be 0 to {maximum}, got {value}")
