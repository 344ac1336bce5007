"""The checkpoint of a training: its facts checked by type where the file is read, before anything is restored from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from edgetl.core.config.finetune import MAX_EPOCHS
from edgetl.core.errors import RunError
from edgetl.core.typed_json import parse_as
from edgetl.train.common.progress import EpochRecord
from edgetl.train.engine.checkpoint import Checkpoint, read_checkpoint
from edgetl.train.engine.cuda_graphs import StepReport
from edgetl.train.engine.phases import Phase

_MAX_PHASES = 2


@dataclass(frozen=True)
class RankState:
    """Counts of one of several processes in an epoch."""

    seen: int
    totals: tuple[float, float]
    mixing: dict[str, Any]
    """The state of NumPy's generator."""


@dataclass(frozen=True)
class PhaseState:
    """How far a phase has come."""

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
    """The content of a checkpoint beside its tensors; written by `Training.save`."""

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
    """Read a checkpoint.

    Raises:
        RunError: it is damaged, or its facts or random generators are not what a training writes.
    """
    state = read_checkpoint(path)
    try:
        facts = {"steps": {}, **parse_as(dict[str, Any], state.metadata, "facts")}
        _check(parse_as(TrainerState, facts, "facts"), state)
    except ValueError as cause:
        raise _resume_error(state, cause) from cause
    return replace(state, metadata=facts)


def check_phases(state: Checkpoint, phases: int) -> None:
    """Check that a checkpoint lies within a training of so many phases.

    Raises:
        RunError: it is not.
    """
    if state.metadata["stage"] > phases:
        raise _resume_error(
            state,
            f"it is in phase {state.metadata['stage'] + 1}, and config.json asks for {phases}",
        )


def _check(facts: TrainerState, state: Checkpoint) -> None:
    numbers = {"stage": (facts.stage, _MAX_PHASES)}
    if facts.phase is not None:
        numbers["phase.epochs"] = (facts.phase.epochs, MAX_EPOCHS)
    if facts.epochs is not None:
        own = facts.epochs
        numbers |= {
            name: (getattr(own, name), 2**53)
            for name in ("done", "since_better", "batches", "step", "averaged_steps")
        }
        if len(own.ranks) != facts.processes or facts.phase is None:
            raise ValueError("the epoch that it stopped in is incomplete")
        _check_generator_state(own.ranks)
    for name, (value, most) in numbers.items():
        if not 0 <= value <= most:
            raise ValueError(f"facts.{name} must be 0 to {most}, got {value}")
    if any(not name.isascii() or not name.isdecimal() for name in facts.steps):
        raise ValueError("facts.steps are not numbered")
    if facts.best is not None and facts.best not in [record.epoch for record in facts.records]:
        raise ValueError(f"epoch {facts.best} is the best, and it is not among its records")
    for rank in range(facts.processes):
        generator = state.tensors.get(f"generator/{rank}/cpu")
        expected = torch.get_rng_state()
        if (
            generator is None
            or generator.dtype != expected.dtype
            or generator.shape != expected.shape
        ):
            raise ValueError(f"it holds no state of the random generator of process {rank}")


def _check_generator_state(ranks: tuple[RankState, ...]) -> None:
    import numpy as np

    for rank in ranks:
        try:
            np.random.default_rng(0).bit_generator.state = rank.mixing
        except (ValueError, TypeError, KeyError, OverflowError) as cause:
            raise ValueError(f"its state of NumPy's generator is broken ({cause})") from cause


def _resume_error(state: Checkpoint, cause: object) -> RunError:
    return RunError(f"{state.path} cannot be gone on with ({cause}). Begin anew in another folder.")
