"""Files of experiments, candidates and bundles of another form are read or refused in one sentence, and never end in a traceback."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetl.cli.compare import show_experiment
from edgetl.core.artifacts.bundle import read_bundle_manifest
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
    bundle = read_bundle_manifest(path.parent)
    json.dumps(bundle.to_json(), allow_nan=False)
    render_bundle_report(bundle)
    bundle_sentences(bundle)


def experiment() -> dict[str, Any]:
    rows = {
        "resnet18-96/head": (0.9, 20.0),
        "resnet18-96/finetune": (0.92, 40.0),
        "resnet18-96/scratch": (0.6, 90.0),
    }
    deployed = (
        DeployedModel("resnet18-96", "resnet18-96-head-s0", 10**6, 3.0, (2.9, 3.1), False, 1),
    )
    failed = made_run("resnet18-96", "finetune", 0.0, 0.0, seed=9, failed="it ended")
    made = json.loads(
        json.dumps(made_experiment(rows, seeds=2, deployed=deployed, more=(failed,)).to_json())
    )
    made["candidates"] = [vars(ScreenedNetwork("resnet18-96", 3.0, (2.9, 3.1), True))]
    made["config"]["compare"]["latency_budget_ms"] = 5.0
    for run in made["runs"]:
        # Mutations are to reach everything else as often.
        run["correct"] = run["correct"][:10]
    return made


def mutations(content: dict[str, Any], path: Path, use: Callable[[Path], None]) -> tuple[int, int]:
    """Return how many mutated files were read and how many refused."""
    read = refused = 0
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
            refused += 1
            assert "\n" not in str(error)  # noqa: PT017
            continue
        read += 1
    return read, refused


@pytest.mark.parametrize("kind", ["experiment", "candidates", "bundle"])
def test_mutated_files_are_read_or_rejected(
    kind: str, tmp_path: Path, stock_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "bundle":
        content = json.loads((stock_bundle / "bundle.json").read_text())
        content["labels"] = content["labels"][:3]
        path, use = tmp_path / "bundle.json", use_bundle
    elif kind == "experiment":
        content, path, use = (
            {"schema": 1, **experiment()},
            tmp_path / "compare.json",
            use_experiment,
        )
    else:
        content, path, use = (
            {"schema": 1, **result_of(candidate("resnet18")).to_json()},
            tmp_path / "candidates.json",
            use_candidates,
        )
    content = json.loads(json.dumps(content))
    path.write_text(json.dumps(content))
    use(path)
    read, refused = mutations(content, path, use)
    capsys.readouterr()
    assert read > 10
    assert refused > 10
