"""Broken plans and runs of an experiment are refused in one sentence."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from edgetl.core.config.compare import CompareConfig
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import ConfigError, DataError, RunError
from edgetl.core.paths import ExperimentDirectory, RunDirectory
from edgetl.experiment.matrix import NetworkSpec, PlannedRun, plan_runs
from edgetl.experiment.plan import (
    ExperimentPlan,
    _check_plan_unchanged,
    read_strategy_run,
    write_plan,
)
from tests.helpers.runs import write_run
from tools.checks.fuzz.mutation import mutate_json

CLASSES, CONFUSION = ("cat", "dog"), ((1, 1), (0, 2))


@pytest.fixture
def config(tmp_path: Path) -> CompareConfig:
    return CompareConfig(tmp_path / "out", strategies=("head", "scratch"), seeds=1)


@pytest.fixture
def planned(config: CompareConfig, tmp_path: Path) -> list[PlannedRun]:
    recipe = FinetuneConfig(tmp_path / "data", weights="/weights")
    return plan_runs(config, recipe, (NetworkSpec("resnet18", 64, 9),), tmp_path / "out/runs")


@pytest.fixture
def run(planned: list[PlannedRun]) -> RunDirectory:
    assert planned[0].config.output is not None
    return write_run(planned[0].config.output, CLASSES, CONFUSION)


def test_read_strategy_run(planned: list[PlannedRun], run: RunDirectory) -> None:
    result, configuration = read_strategy_run(planned[0])
    assert (result.correct, result.confusion, result.seconds) == ("1011", CONFUSION, 21.5)
    assert [epoch.elapsed for epoch in result.epochs] == [
        5 + 2.0 * number for number in range(1, 8)
    ]
    assert configuration.classes == CLASSES


def test_mutated_metrics_are_read_or_refused(planned: list[PlannedRun], run: RunDirectory) -> None:
    metrics = json.loads(run.metrics.read_text())
    readable = 0
    for seed in range(300):
        run.metrics.write_text(json.dumps(mutate_json(metrics, random.Random(seed))))
        try:
            result, _ = read_strategy_run(planned[0])
        except (RunError, DataError):
            continue
        assert isinstance(result.seconds, float)
        readable += 1
    assert 10 < readable < 290


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("history.jsonl", "[" * 100_000 + "}"),
        ("history.jsonl", "3\n"),
        ("history.jsonl", '{"phase": 1}\n'),
        ("history.jsonl", '{"phase": "1", "elapsed": 1, "train_accuracy": 1}\n'),
        ("history.jsonl", '{"phase": 1, "elapsed": NaN, "train_accuracy": 1}\n'),
        ("predictions.csv", ""),
        ("predictions.csv", "path,label\na,cat\n"),
        ("predictions.csv", "path,label,predicted,probability,label_probability\na,cat,bird,1,0\n"),
        ("metrics.json", '{"schema": 1}'),
    ],
)
def test_broken_run_is_refused_in_one_sentence(
    planned: list[PlannedRun], run: RunDirectory, name: str, content: str
) -> None:
    (run.path / name).write_text(content)
    with pytest.raises(RunError, match=r"Remove .*, and `edgetl compare` trains it again"):
        read_strategy_run(planned[0])


def test_run_of_older_version_is_refused(planned: list[PlannedRun]) -> None:
    assert planned[0].config.output is not None
    run = write_run(planned[0].config.output, CLASSES, CONFUSION, older=True)
    with pytest.raises(RunError, match="predictions are missing"):
        read_strategy_run(planned[0])
    assert run.metrics.exists()


def test_run_without_validation_is_refused(planned: list[PlannedRun]) -> None:
    assert planned[0].config.output is not None
    write_run(planned[0].config.output, CLASSES, CONFUSION, validated=False)
    with pytest.raises(DataError, match="No validation images"):
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
