"""Broken plans and runs of an experiment are refused in one sentence."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgetl.core.config.compare import CompareConfig
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import ConfigError, DataError, RunError
from edgetl.core.paths import ExperimentDirectory
from edgetl.experiment.matrix import NetworkSpec, PlannedRun, plan_runs
from edgetl.experiment.plan import (
    ExperimentPlan,
    _check_plan_unchanged,
    read_strategy_run,
    write_plan,
)
from tools.checks.fuzz.mutation import mutate_json

METRICS: dict[str, Any] = {
    "schema": 1,
    "classes": ["cat", "dog"],
    "seconds": {"total": 9.5},
    "train": {"images": 8, "accuracy": 1.0},
    "val": {"macro_f1": 0.8, "accuracy": 0.75, "images": 4},
    "best_epoch": 2,
    "parameters": {"trainable": 10, "total": 100},
    "peak_memory_bytes": 10**8,
    "peak_gpu_memory_bytes": None,
    "device": "cpu",
    "precision": "fp32",
    "weights": {"source": "imagenet"},
}
EPOCHS = [
    {"phase": 1, "elapsed": 3.0 * number, "train_accuracy": 0.5, "val_accuracy": 0.75}
    for number in (1, 2)
]
PREDICTIONS = """\
path,label,predicted,probability,label_probability
a,cat,cat,1,1
b,cat,dog,1,0
c,dog,dog,1,1
d,dog,dog,1,1
"""


@pytest.fixture
def config(tmp_path: Path) -> CompareConfig:
    return CompareConfig(tmp_path / "out", strategies=("head", "scratch"), seeds=1)


@pytest.fixture
def planned(config: CompareConfig, tmp_path: Path) -> list[PlannedRun]:
    recipe = FinetuneConfig(tmp_path / "data", weights="/weights")
    return plan_runs(config, recipe, (NetworkSpec("resnet18", 64, 9),), tmp_path / "out/runs")


def write_run(
    folder: Path, metrics: Any = METRICS, history: str | None = None, predictions: str = PREDICTIONS
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "config.json").write_text('{"schema": 1}')
    (folder / "history.jsonl").write_text(
        "".join(json.dumps(epoch) + "\n" for epoch in EPOCHS) if history is None else history
    )
    (folder / "predictions.csv").write_text(predictions)


def test_read_strategy_run(planned: list[PlannedRun]) -> None:
    assert planned[0].config.output is not None
    write_run(planned[0].config.output)
    run, _ = read_strategy_run(planned[0])
    assert (run.correct, run.confusion, run.seconds) == ("1011", ((1, 1), (0, 2)), 9.5)
    assert [epoch.elapsed for epoch in run.epochs] == [3.0, 6.0]


def test_mutated_metrics_are_read_or_refused(planned: list[PlannedRun]) -> None:
    folder = planned[0].config.output
    assert folder is not None
    readable = 0
    for seed in range(300):
        write_run(folder, mutate_json(METRICS, random.Random(seed)))
        try:
            run, _ = read_strategy_run(planned[0])
        except (RunError, DataError):
            continue
        assert isinstance(run.seconds, float)
        readable += 1
    assert 10 < readable < 290


@pytest.mark.parametrize(
    "files",
    [
        {"history": "[" * 100_000},
        {"history": "3\n"},
        {"history": '{"phase": 1}\n'},
        {"history": '{"phase": "1", "elapsed": 1, "train_accuracy": 1, "val_accuracy": 1}\n'},
        {"history": '{"phase": 1, "elapsed": NaN, "train_accuracy": 1, "val_accuracy": 1}\n'},
        {"predictions": ""},
        {"predictions": "path,label\na,cat\n"},
        {"predictions": PREDICTIONS.replace("dog", "bird")},
    ],
)
def test_broken_run_is_refused_in_one_sentence(
    planned: list[PlannedRun], files: dict[str, str]
) -> None:
    folder = planned[0].config.output
    assert folder is not None
    write_run(folder, **files)
    with pytest.raises(RunError, match="Remove it, and `edgetl compare` trains it again"):
        read_strategy_run(planned[0])


def test_mutated_plans_are_accepted_or_refused(
    config: CompareConfig, planned: list[PlannedRun], tmp_path: Path
) -> None:
    folder = ExperimentDirectory(config.output or tmp_path)
    write_plan(
        folder, ExperimentPlan(planned, {}, []), config, replace(planned[0].config, output=None)
    )
    content = json.loads(folder.plan.read_text())
    finished, refused = [planned[0].name], 0
    _check_plan_unchanged(folder, planned, finished)
    for seed in range(300):
        folder.plan.write_text(
            json.dumps({**content, "runs": mutate_json(content["runs"], random.Random(seed))})
        )
        try:
            _check_plan_unchanged(folder, planned, finished)
        except (RunError, ConfigError):
            refused += 1
    assert refused > 50
