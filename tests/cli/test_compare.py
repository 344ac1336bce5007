from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edgetl.cli.app import create_app
from edgetl.core.config.compare import CompareConfig
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.experiment import task_process
from tests.conftest import ARCHITECTURE, IMAGE_SIZE
from tests.helpers import forkserver
from tests.helpers.experiments import made_experiment

NETWORK = "mobilenet_v2-224"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[CompareConfig, FinetuneConfig]]:
    """Record the configurations that the command passes to the library."""
    from edgetl.experiment import compare as experiment_runner

    recorded_calls: list[tuple[CompareConfig, FinetuneConfig]] = []

    def compare(config: CompareConfig, recipe: FinetuneConfig, progress: Any) -> Any:
        recorded_calls.append((config, recipe))
        return made_experiment(
            {f"{NETWORK}/scratch": (0.5, 100.0), f"{NETWORK}/head": (0.9, 9.0)},
            folder=config.output,
        )

    monkeypatch.setattr(experiment_runner, "compare", compare)
    return recorded_calls


def run(*arguments: object) -> Any:
    return CliRunner().invoke(
        create_app("compare"), ["compare", *map(str, arguments)], env={"COLUMNS": "200"}
    )


def test_options_are_passed_to_the_library(
    calls: list[tuple[CompareConfig, FinetuneConfig]], tmp_path: Path
) -> None:
    result = run(
        tmp_path / "pets", "--models", "resnet18,mobilenet_v2",
        "--strategies", "scratch,freeze-sweep", "--seeds", 2, "--image-size", "160,224",
        "--weights", "/weights", "--epochs", 12, "--budget", "30m", "--target-accuracy", "0.9",
        "--latency-budget", "5ms", "--preset", "classic", "--no-bench", "-o", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    ((config, recipe),) = calls
    assert config == CompareConfig(
        tmp_path / "out",
        ("resnet18", "mobilenet_v2"),
        ("scratch", "freeze-sweep"),
        2,
        (160, 224),
        12,
        1800.0,
        0.9,
        5.0,
        bench=False,
    )
    assert (recipe.data, recipe.weights, recipe.preset, recipe.head_width) == (
        tmp_path / "pets",
        "/weights",
        "classic",
        128,
    )


def test_defaults_without_options(
    calls: list[tuple[CompareConfig, FinetuneConfig]], tmp_path: Path
) -> None:
    result = run(tmp_path / "pets")
    ((config, recipe),) = calls
    assert config == CompareConfig(Path("experiments/pets"))
    assert recipe == FinetuneConfig(tmp_path / "pets")
    assert f"{NETWORK}: Take `head`: 90.0% of 200 validation images" in result.output
    assert "90.0% [85.1%, 93.4%]" in result.output
    assert "report.html" in result.output


def test_json_prints_one_object(
    calls: list[tuple[CompareConfig, FinetuneConfig]], tmp_path: Path
) -> None:
    content = json.loads(run(tmp_path / "pets", "--json").stdout)
    assert (content["schema"], content["kind"]) == (1, "compare")
    assert content["recommended"] == {NETWORK: f"{NETWORK}-head"}


def test_dry_run_prints_the_plan_and_trains_nothing(
    parts: Path, random_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forkserver.fork_workers(task_process, monkeypatch)
    result = run(
        parts, "--models", ARCHITECTURE, "--strategies", "scratch,head", "--seeds", 1,
        "--image-size", IMAGE_SIZE, "--weights", random_weights, "-o", tmp_path / "out", "--dry-run",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for name in ("head", "scratch-equal-time", "scratch"):
        assert f"{ARCHITECTURE}-{IMAGE_SIZE}-{name}-s0" in result.stdout
    assert "3 of 3 runs left, about" in result.stdout
    assert not (tmp_path / "out").exists()


def test_invalid_options_are_reported_together(
    edgetl: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    process = edgetl("compare", tmp_path / "pets", "--strategies", "heads", "--seeds", 0)
    assert process.returncode == 1
    assert "'heads'" in process.stderr
    assert "--seeds must be >= 1" in process.stderr
    assert "Traceback" not in process.stderr
