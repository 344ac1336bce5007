"""State of a training run in a checkpoint, validated before anything is restored from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from edgetl.core.artifacts.run import EpochRecord
from edgetl.core.artifacts.run_metrics import StepReport
from edgetl.core.config.finetune import MAX_EPOCHS
from edgetl.core.errors import RunError
from edgetl.core.typed_json import parse_as
from edgetl.train.engine.checkpoint import Checkpoint, read_checkpoint
from edgetl.train.engine.phases import Phase

_MAX_PHASES = 2


@dataclass(frozen=True)
class RankState:
    """State of one process within an epoch."""

    seen: int
    """Images trained in this epoch."""
    totals: tuple[float, float]
    """Sum of the losses and number of correct predictions."""
    mixing: dict[str, Any]
    """State of NumPy's generator for mixup."""


@dataclass(frozen=True)
class PhaseState:
    """State of a phase."""

    done: int
    since_better: int
    slowest: float
    batches: int
    lr: float
    spent: float
    step: int
    ranks: tuple[RankState, ...]
    averaged_steps: int
    scaler: dict[str, Any]
    frozen: dict[str, str]
    """SHA-256 of each frozen tensor."""


@dataclass(frozen=True)
class TrainerState:
    """Content of a checkpoint except its tensors, as `Trainer.save` writes it."""

    processes: int
    stage: int
    phase: Phase | None
    epochs: PhaseState | None
    """None between two phases."""
    records: tuple[EpochRecord, ...]
    best: int | None
    seconds: dict[str, float]
    elapsed: float
    trainable: int
    ended: str | None
    steps: dict[str, StepReport]


def read_training_checkpoint(path: Path) -> Checkpoint:
    """Read and validate a checkpoint.

    Raises:
        RunError: if it is damaged, or its facts or random generators are invalid.
    """
    checkpoint = read_checkpoint(path)
    try:
        facts = {"steps": {}, **parse_as(dict[str, Any], checkpoint.metadata, "facts")}
        _check(parse_as(TrainerState, facts, "facts"), checkpoint)
    except ValueError as cause:
        raise _resume_error(checkpoint, cause) from cause
    return replace(checkpoint, metadata=facts)


def check_phases(checkpoint: Checkpoint, phases: int) -> None:
    """Check that the checkpoint's phase exists in a run of `phases` phases.

    Raises:
        RunError: if it does not.
    """
    index = checkpoint.metadata["stage"]
    if index > phases:
        raise _resume_error(checkpoint, f"it is in phase {index + 1} and config.json has {phases}")


def _check(state: TrainerState, checkpoint: Checkpoint) -> None:
    numbers = {"stage": (state.stage, _MAX_PHASES)}
    if state.phase is not None:
        numbers["phase.epochs"] = (state.phase.epochs, MAX_EPOCHS)
    if state.epochs is not None:
        numbers |= {
            name: (getattr(state.epochs, name), 2**53)
            for name in ("done", "since_better", "batches", "step", "averaged_steps")
        }
        if len(state.epochs.ranks) != state.processes or state.phase is None:
            raise ValueError("the state of its last epoch is incomplete")
        _check_generator_state(state.epochs.ranks)
    for name, (value, maximum) in numbers.items():
        if not 0 <= value <= maximum:
            raise ValueError(f"facts.{name} must be 0 to {maximum}, got {value}")
    if any(not name.isascii() or not name.isdecimal() for name in state.steps):
        raise ValueError("facts.steps is not numbered by phase")
    if state.best is not None and state.best not in [record.epoch for record in state.records]:
        raise ValueError(f"epoch {state.best} is the best and is not among its records")
    for rank in range(state.processes):
        generator = checkpoint.tensors.get(f"generator/{rank}/cpu")
        expected = torch.get_rng_state()
        if (
            generator is None
            or generator.dtype != expected.dtype
            or generator.shape != expected.shape
        ):
            raise ValueError(f"the random generator of process {rank} is missing or invalid")


def _check_generator_state(ranks: tuple[RankState, ...]) -> None:
    import numpy as np

    for rank in ranks:
        try:
            np.random.default_rng(0).bit_generator.state = rank.mixing
        except (ValueError, TypeError, KeyError, OverflowError) as cause:
            raise ValueError(f"the state of NumPy's generator is invalid ({cause})") from cause


def _resume_error(checkpoint: Checkpoint, cause: object) -> RunError:
    return RunError(
        f"Cannot resume from {checkpoint.path}: {cause}. Start a new run in another folder."
    )
