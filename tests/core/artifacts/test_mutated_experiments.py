"""Mutated experiments, candidates and bundles are either read or rejected with a one-line error."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetl.cli.compare import show_experiment
from edgetl.core.artifacts.bundle import read_bundle_record
from edgetl.core.artifacts.candidates import read_candidates
from edgetl.core.artifacts.experiment import DeployedModel, ScreenedNetwork, read_experiment
from edgetl.core.errors import EdgetlError
from edgetl.report.bundle.page import bundle_sentences, render_bundle_report
from edgetl.report.compare.page import render_compare_report
from tests.helpers.candidates import candidate, result_of
from tests.helpers.experiments import made_experiment, made_run
from tools.checks.fuzz.mutation import mutate_json

CASES = 60


def use_experiment(path: Path) -> None:
    experiment = read_experiment(path)
    json.dumps(experiment.to_json(), allow_nan=False)
    render_compare_report(experiment)
    show_experiment(experiment)


def use_candidates(path: Path) -> None:
    json.dumps(read_candidates(path).to_json(), allow_nan=False)


def use_bundle(path: Path) -> None:
    bundle = read_bundle_record(path.parent)
    json.dumps(bundle.to_json(), allow_nan=False)
    render_bundle_report(bundle)
    bundle_sentences(bundle)


def experiment_content() -> dict[str, Any]:
    rows = {
        "resnet18-96/head": (0.9, 20.0),
        "resnet18-96/finetune": (0.92, 40.0),
        "resnet18-96/scratch": (0.6, 90.0),
    }
    deployed = (
        DeployedModel("resnet18-96", "resnet18-96-head-s0", 10**6, 3.0, (2.9, 3.1), False, 1),
    )
    failed = made_run("resnet18-96", "finetune", 0.0, 0.0, seed=9, failed="it ended")
    content: dict[str, Any] = json.loads(
        json.dumps(made_experiment(rows, seeds=2, deployed=deployed, more=(failed,)).to_json())
    )
    content["candidates"] = [vars(ScreenedNetwork("resnet18-96", 3.0, (2.9, 3.1), True))]
    content["config"]["compare"]["latency_budget_ms"] = 5.0
    for run in content["runs"]:
        # Few predictions, so that mutations affect other fields as often.
        run["correct"] = run["correct"][:10]
    return content


def count_outcomes(
    content: dict[str, Any], path: Path, use: Callable[[Path], None]
) -> tuple[int, int]:
    """Return the numbers of accepted and rejected mutated files."""
    accepted = rejected = 0
    for seed in range(CASES):
        generator = random.Random(seed)
        mutated = dict(content)
        part = generator.choice([*content, None])
        if part is None:
            mutated = mutate_json(mutated, generator)
        else:
            mutated[part] = mutate_json(mutated[part], generator)
        path.write_text(json.dumps(mutated))
        try:
            use(path)
        except EdgetlError as error:
            rejected += 1
            assert "\n" not in str(error)  # noqa: PT017
            continue
        accepted += 1
    return accepted, rejected


@pytest.mark.parametrize(
    ("kind", "min_accepted"), [("experiment", 10), ("candidates", 10), ("bundle", 2)]
)
def test_mutated_files_are_read_or_rejected(
    kind: str,
    min_accepted: int,
    tmp_path: Path,
    stock_bundle: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if kind == "bundle":
        content = json.loads((stock_bundle / "bundle.json").read_text())
        content["labels"] = content["labels"][:3]
        path, use = tmp_path / "bundle.json", use_bundle
    elif kind == "experiment":
        content = {"schema": 1, **experiment_content()}
        path, use = tmp_path / "compare.json", use_experiment
    else:
        content = {"schema": 1, **result_of(candidate("resnet18")).to_json()}
        path, use = tmp_path / "candidates.json", use_candidates
    content = json.loads(json.dumps(content))
    path.write_text(json.dumps(content))
    use(path)
    accepted, rejected = count_outcomes(content, path, use)
    capsys.readouterr()
    assert accepted > min_accepted
    assert rejected > 10
