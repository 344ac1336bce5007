"""Mutated checkpoints: facts with a valid hash, or bytes."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgetl.core.artifacts.run import EpochRecord
from edgetl.train.engine.checkpoint import write_checkpoint
from edgetl.train.engine.phases import Phase
from edgetl.train.engine.training_state import read_training_checkpoint
from tools.checks.fuzz.mutation import mutate_json
from tools.checks.fuzz.target import Target, mutate_file

_NAME = "state.safetensors"


def _facts() -> dict[str, Any]:
    mixup_state = dict(np.random.default_rng(0).bit_generator.state)
    phase_loop = {
        "done": 0, "since_better": 0, "slowest": 0.0, "batches": 1, "lr": 1e-3, "spent": 0.1,
        "step": 1, "averaged_steps": 0, "scaler": {}, "frozen": {"features.0.weight": "0" * 64},
        "ranks": [{"seen": 8, "totals": [1.0, 2.0], "mixing": mixup_state}],
    }  # fmt: skip
    records = [EpochRecord(1, epoch, 0.5, 0.5, 0.5, 0.5, 1e-3, 1.0, 10.0, 1.0) for epoch in (1, 2)]
    return {
        "processes": 1, "stage": 1,
        "phase": asdict(Phase(2, 3, 1e-4, "all", False)), "epochs": phase_loop,
        "records": list(map(asdict, records)), "best": 1,
        "seconds": {"phase1": 1.0}, "elapsed": 1.0, "trainable": 5, "ended": None,
        "steps": {"1": {"runner": "eager", "milliseconds": {}, "reason": "a CPU"}},
    }  # fmt: skip


def _write(path: Path, facts: Any) -> None:
    parts = {
        "network": {"weight": torch.ones(2, 2)},
        "best": {"weight": torch.ones(2, 2)},
        "generator": {"0/cpu": torch.get_rng_state()},
    }
    write_checkpoint(path, parts, facts)


def prepare(folder: Path) -> None:
    """Write a checkpoint, and its facts as JSON."""
    _write(folder / _NAME, _facts())
    (folder / "facts.json").write_text(json.dumps(_facts()), encoding="utf-8")


def make_case(generator: random.Random, originals: Path, case: Path) -> None:
    """Write mutated facts with a valid hash, or mutated bytes."""
    path = case / _NAME
    if generator.random() < 0.3:
        path.write_bytes((originals / _NAME).read_bytes())
        mutate_file(path, generator)
    else:
        facts = json.loads((originals / "facts.json").read_text(encoding="utf-8"))
        _write(path, mutate_json(facts, generator))


def use(case: Path) -> None:
    """Read the checkpoint."""
    read_training_checkpoint(case / _NAME)


TARGET = Target(prepare, make_case, use)
