from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgetl.core.artifacts.run import EpochRecord
from edgetl.core.errors import RunError
from edgetl.core.typed_json import FieldError, to_json
from edgetl.train.engine.checkpoint import write_checkpoint
from edgetl.train.engine.phases import Phase
from edgetl.train.engine.training_state import (
    read_training_checkpoint,
    write_training_checkpoint,
)

RECORD = asdict(EpochRecord(1, 1, 0.5, 0.5, 0.5, 0.5, 1e-3, 1.0, 10.0, 1.0))
PHASE_STATE = {
    "done": 0, "since_better": 0, "slowest": 0.0, "batches": 1, "lr": 1e-3, "spent": 0.1,
    "step": 1, "averaged_steps": 0, "scaler": {}, "frozen": {},
    "ranks": [
        {
            "seen": 8, "totals": [1.0, 2.0],
            "mixing": dict(np.random.default_rng(0).bit_generator.state),
        }
    ],
}  # fmt: skip
FACTS: dict[str, Any] = {
    "processes": 1, "stage": 1, "phase": asdict(Phase(2, 1, 1e-4, "all", False)),
    "epochs": PHASE_STATE, "records": [RECORD], "best": 1, "seconds": {}, "elapsed": 1.0,
    "trainable": 5, "ended": None,
}  # fmt: skip


def write(path: Path, facts: Any, generator: torch.Tensor | None = None) -> Path:
    state = torch.get_rng_state() if generator is None else generator
    write_checkpoint(path, {"generator": {"0/cpu": state}}, facts)
    return path


def test_checkpoint_of_trainer_is_read(tmp_path: Path) -> None:
    state = read_training_checkpoint(write(tmp_path / "state", FACTS))
    assert state.loop is not None
    assert state.values.best_record == EpochRecord(**RECORD)
    facts = {**to_json(state.values), "epochs": to_json(state.loop.values)}
    assert json.loads(json.dumps(facts)) == {**FACTS, "steps": {}}
    state.check_phases(2)
    with pytest.raises(FieldError, match=r"in phase 2 and config\.json has 0"):
        state.check_phases(0)


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    path = write(tmp_path / "state", FACTS)
    state = read_training_checkpoint(path)
    write_training_checkpoint(tmp_path / "again", state)
    again = read_training_checkpoint(tmp_path / "again")
    assert again.values == state.values
    assert again.loop is not None
    assert state.loop is not None
    assert again.loop.values == state.loop.values
    assert torch.equal(again.generators["0/cpu"], torch.get_rng_state())


@pytest.mark.parametrize("name", sorted(FACTS))
def test_missing_fact_is_reported(tmp_path: Path, name: str) -> None:
    facts = {key: value for key, value in FACTS.items() if key != name}
    with pytest.raises(RunError, match=f"no field '{name}'.*Start a new run in another folder"):
        read_training_checkpoint(write(tmp_path / "state", facts))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage": -1}, "facts: stage must be 0 to 2, got -1"),
        ({"stage": "1"}, "facts.stage must be an integer"),
        ({"records": [{**RECORD, "lr": None}]}, "lr must be a number"),
        ({"best": 7}, "epoch 7 is the best"),
        ({"processes": 2}, "is incomplete"),
        ({"phase": None}, "is incomplete"),
        ({"steps": {"x": {"runner": "eager", "milliseconds": {}, "reason": ""}}}, "not numbered"),
        (
            {
                "epochs": {
                    **PHASE_STATE,
                    "ranks": [{"seen": 8, "totals": [1.0, 2.0], "mixing": {"bit_generator": "X"}}],
                }
            },
            "NumPy's generator",
        ),
    ],
)
def test_invalid_fact_is_reported(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=message):
        read_training_checkpoint(write(tmp_path / "state", {**FACTS, **change}))


@pytest.mark.parametrize("facts", [[], None, 3, "x"])
def test_facts_must_be_an_object(tmp_path: Path, facts: Any) -> None:
    with pytest.raises(RunError, match="facts must be an object"):
        read_training_checkpoint(write(tmp_path / "state", facts))


def test_generator_of_other_size_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="random generator of process 0"):
        read_training_checkpoint(write(tmp_path / "state", FACTS, torch.zeros(3)))
