"""Experiments in real processes: killed and resumed, with a failing run, with a latency budget."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgetl.core.artifacts.bench_json import write_result
from edgetl.core.artifacts.candidates import CandidatesResult
from edgetl.core.artifacts.experiment import read_experiment
from edgetl.core.artifacts.experiment_runs import StrategyRun
from edgetl.core.config.candidates import CandidatesConfig
from edgetl.core.config.compare import EQUAL_TIME, CompareConfig
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import (
    ArchitectureError,
    BenchError,
    ConfigError,
    DataError,
    RunError,
    WeightsError,
)
from edgetl.core.paths import BundleDirectory, ExperimentDirectory, RunDirectory
from edgetl.device.hardware.info import collect_device_info
from edgetl.experiment import plan as plan_module
from edgetl.experiment import task_process
from edgetl.experiment.compare import compare, plan_experiment
from edgetl.experiment.matrix import PlannedRun
from edgetl.experiment.messages import WorkerMessage
from edgetl.experiment.plan import to_screened_networks, write_plan
from edgetl.experiment.progress import ExperimentProgress
from tests.conftest import ARCHITECTURE, IMAGE_SIZE, ROOT
from tests.helpers import forkserver
from tests.helpers.candidates import candidate, result_of

ROW = f"{ARCHITECTURE}-{IMAGE_SIZE}"
STRATEGIES = ("head", "finetune", EQUAL_TIME, "scratch")


@pytest.fixture
def not_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip timing of training steps, which takes as long as a run here."""
    monkeypatch.setattr(
        plan_module,
        "_estimate_run_seconds",
        lambda runs, progress, scratch: {run.name: 1.0 for run in runs},
    )


@pytest.fixture(autouse=True)
def _forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    forkserver.fork_workers(task_process, monkeypatch)


class RecordingProgress(ExperimentProgress):
    """Progress callbacks that record their calls."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.started: list[str] = []
        self.results: dict[str, StrategyRun] = {}
        self.messages: list[WorkerMessage] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def on_plan(
        self, runs: Sequence[PlannedRun], finished: Sequence[str], seconds: Mapping[str, float]
    ) -> None:
        assert {run.name for run in runs} >= set(seconds)

    def on_run_start(self, run: PlannedRun) -> None:
        self.started.append(run.name)

    def on_run_message(self, run: PlannedRun, message: WorkerMessage) -> None:
        self.messages.append(message)

    def on_run_end(self, run: PlannedRun, result: StrategyRun) -> None:
        self.results[run.name] = result


@pytest.fixture(scope="module")
def recipe(parts: Path, random_weights: Path) -> FinetuneConfig:
    return FinetuneConfig(parts, weights=str(random_weights), device="cpu", **RECIPE)


def compare_config(folder: Path, **more: Any) -> CompareConfig:
    options: dict[str, Any] = {
        "models": (ARCHITECTURE,),
        "seeds": 1,
        "image_sizes": (IMAGE_SIZE,),
        "epochs": 3,
        "bench": False,
    }
    return CompareConfig(folder, **{**options, **more})


RECIPE: dict[str, Any] = {"lr": 0.02, "finetune_lr": 0.002, "workers": 0}
"""High learning rates: random features have small logits, and the export refuses tied classes."""


def command(data: Path, weights: Path, folder: Path, *more: str) -> list[str]:
    config = folder.parent / "recipe.toml"
    config.write_text("".join(f"{name} = {value}\n" for name, value in RECIPE.items()))
    return [
        "compare", str(data), "--models", ARCHITECTURE, "--seeds", "1", "--image-size", str(IMAGE_SIZE),
        "--epochs", "3", "--weights", str(weights), "--config", str(config), "--device", "cpu",
        "-o", str(folder), "--json", *more,
    ]  # fmt: skip


def children_of(pid: int) -> list[int]:
    return [
        int(child)
        for path in Path(f"/proc/{pid}/task").glob("*/children")
        for child in path.read_text().split()
    ]


@pytest.fixture(scope="module")
def resumed_experiment(
    forked: Callable[..., subprocess.CompletedProcess[str]],
    parts: Path,
    random_weights: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, float], str, list[int]]:
    """Kill an experiment with SIGKILL during its third run and start it again.

    Returns the folder, the modification times of the finished runs, the output, and the children.
    """
    folder = ExperimentDirectory(tmp_path_factory.mktemp("experiment") / "pets")
    arguments = command(parts, random_weights, folder.path)
    first = forkserver.start(arguments, ROOT, tmp_path_factory.mktemp("output"))
    assert first.pid is not None
    finished = [RunDirectory(folder.runs / f"{ROW}-{strategy}-s0") for strategy in STRATEGIES[:2]]
    third = RunDirectory(folder.runs / f"{ROW}-{STRATEGIES[2]}-s0")
    wait_for(third.config.is_file, first.is_alive)
    children = children_of(first.pid)
    first.kill()
    first.join()
    assert children
    times = {run.path.name: run.metrics.stat().st_mtime_ns for run in finished}
    wait_for(
        lambda: (
            not any(
                Path(f"/proc/{child}/cmdline").exists()
                and Path(f"/proc/{child}/cmdline").read_bytes()
                for child in children
            )
        )
    )
    second = forked(*arguments)
    assert second.returncode == 0, second.stderr
    return folder.path, times, second.stdout + "\0" + second.stderr, children


def wait_for(
    condition: Callable[[], bool],
    is_alive: Callable[[], bool] | None = None,
    timeout_s: float = 120,
) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        assert is_alive is None or is_alive(), "the process ended by itself"
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_experiment_resumes_without_repeating_runs(
    resumed_experiment: tuple[Path, dict[str, float], str, list[int]],
) -> None:
    folder, times, output, _ = resumed_experiment
    runs = ExperimentDirectory(folder).runs
    assert {name: (runs / name / "metrics.json").stat().st_mtime_ns for name in times} == times
    assert sorted(path.name for path in runs.iterdir()) == sorted(
        f"{ROW}-{strategy}-s0" for strategy in STRATEGIES
    )
    assert "4 runs, 2 already finished" in output
    assert "[1/4]" not in output.partition("\0")[2]
    experiment = read_experiment(ExperimentDirectory(folder).result)
    assert not experiment.unfinished_run_names
    assert not experiment.failed_runs
    assert not list(folder.glob(".cache-*")) or len(list(folder.glob(".cache-*"))) == 1, (
        "only the cache of the killed run may be left"
    )


@pytest.mark.slow
def test_results_match_the_run_directories(
    resumed_experiment: tuple[Path, dict[str, float], str, list[int]],
) -> None:
    folder, _, output, _ = resumed_experiment
    experiment = read_experiment(ExperimentDirectory(folder).result)
    printed = json.loads(output.partition("\0")[0])
    assert printed["kind"] == "compare"
    assert [row["strategy"] for row in printed["rows"]] == [
        "scratch",
        EQUAL_TIME,
        "head",
        "finetune",
    ]
    for run in experiment.runs:
        metrics = json.loads((folder / run.folder / "metrics.json").read_text())
        history = [
            json.loads(line)
            for line in (folder / run.folder / "history.jsonl").read_text().splitlines()
        ]
        assert run.val_accuracy == pytest.approx(metrics["val"]["accuracy"])
        assert run.seconds == metrics["seconds"]["total"]
        assert [epoch.elapsed for epoch in run.epochs] == [line["elapsed"] for line in history]
        assert (run.trainable, run.parameters) == (
            metrics["parameters"]["trainable"],
            metrics["parameters"]["total"],
        )
        assert sum(map(sum, run.confusion)) == len(run.correct_mask) == 20
        assert metrics["frozen_blocks"]["cache"] != "reused", (
            "a run must not reuse the features of another"
        )
    by_strategy = {run.strategy: run for run in experiment.runs}
    assert {len(run.epochs) for run in experiment.runs if run.strategy != EQUAL_TIME} == {3}
    config = json.loads((folder / by_strategy[EQUAL_TIME].folder / "config.json").read_text())[
        "config"
    ]
    assert config["budget_s"] == by_strategy["finetune"].seconds
    assert (
        by_strategy["head"].trainable
        < by_strategy["finetune"].trainable
        < by_strategy["scratch"].trainable
    )
    splits = {(folder / run.folder / "split.csv").read_text() for run in experiment.runs}
    assert len(splits) == 1


@pytest.mark.slow
def test_recommended_run_is_exported_and_timed_once(
    resumed_experiment: tuple[Path, dict[str, float], str, list[int]],
) -> None:
    folder, _, _, _ = resumed_experiment
    experiment = read_experiment(ExperimentDirectory(folder).result)
    (model,) = experiment.deployed_models
    row = experiment.recommend_strategy(experiment.networks[0])
    assert row is not None
    assert model.failed is None
    assert model.run == row.best_run.name
    bundle = BundleDirectory(folder / row.best_run.folder / "bundle")
    assert model.file_bytes == bundle.variant("fp32").stat().st_size
    assert model.p50_ms is not None
    assert len(list((folder / row.best_run.folder / "bench").glob("*.json"))) == 1


@pytest.mark.slow
def test_compare_writes_markdown_tables(
    resumed_experiment: tuple[Path, dict[str, float], str, list[int]],
) -> None:
    folder, _, _, _ = resumed_experiment
    table = ExperimentDirectory(folder).table.read_text()
    assert f"## {ROW}, equal epochs\n" in table
    assert f"| {EQUAL_TIME} |" in table or f"| {EQUAL_TIME} * |" in table
    assert "## Differences" in table


@pytest.mark.slow
def test_finished_experiment_trains_nothing(
    resumed_experiment: tuple[Path, dict[str, float], str, list[int]], recipe: FinetuneConfig
) -> None:
    folder, _, _, _ = resumed_experiment
    before = read_experiment(ExperimentDirectory(folder).result)
    progress = RecordingProgress()
    again = compare(
        compare_config(folder, strategies=("scratch", "head", "finetune"), bench=True),
        recipe,
        progress,
    )
    assert progress.started == []
    assert again.runs == before.runs
    assert again.deployed_models == before.deployed_models


@pytest.mark.slow
def test_compare_refuses_another_plan(
    resumed_experiment: tuple[Path, dict[str, float], str, list[int]], recipe: FinetuneConfig
) -> None:
    folder, _, _, _ = resumed_experiment
    with pytest.raises(ConfigError, match=r"another plan: .*epochs was"):
        plan_experiment(compare_config(folder, epochs=5), recipe)
    with pytest.raises(ConfigError, match=r"another plan: .*batch_size was None, is 4"):
        plan_experiment(compare_config(folder), replace(recipe, batch_size=4))


@pytest.mark.slow
@pytest.mark.usefixtures("not_estimated")
def test_plan_keeps_earlier_runs_when_extended(
    resumed_experiment: tuple[Path, dict[str, float], str, list[int]],
    recipe: FinetuneConfig,
    tmp_path: Path,
) -> None:
    folder = ExperimentDirectory(tmp_path / "copy")
    shutil.copytree(resumed_experiment[0], folder.path)
    other = compare_config(folder.path, strategies=("scratch",), epochs=2, image_sizes=(32,))
    write_plan(folder, plan_experiment(other, recipe), other, recipe)
    with pytest.raises(ConfigError, match="another plan"):
        plan_experiment(compare_config(folder.path, epochs=2), recipe)
    content = json.loads(folder.plan.read_text())
    del content["runs"][f"{ROW}-head-s0"]
    folder.plan.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="is not in its plan"):
        plan_experiment(compare_config(folder.path), recipe)


@pytest.mark.slow
def test_second_process_on_the_same_folder_is_refused(
    resumed_experiment: tuple[Path, dict[str, float], str, list[int]], recipe: FinetuneConfig
) -> None:
    folder = ExperimentDirectory(resumed_experiment[0])
    with (folder.path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="is in use by another process"):
            compare(compare_config(folder.path), recipe)
    leftover = folder.path / ".cache-left"
    leftover.mkdir()
    experiment = compare(compare_config(folder.path), recipe)
    assert not leftover.exists()
    assert len(experiment.deployed_models) == 1, "--no-bench keeps earlier measurements"


@pytest.mark.usefixtures("not_estimated")
def test_seeds_share_a_split_and_a_failed_run_is_recorded(
    recipe: FinetuneConfig, make_images: Callable[..., Path], tmp_path: Path
) -> None:
    progress = RecordingProgress()
    recipe = replace(recipe, data=make_images("flat", ["blue", "green", "red"], count=10))
    folder = ExperimentDirectory(tmp_path / "out")
    config = compare_config(folder.path, strategies=("head",), seeds=2, epochs=2)
    experiment = compare(config, recipe, progress)
    assert progress.started == [f"{ROW}-head-s0", f"{ROW}-head-s1"]
    assert (
        len({(folder.path / run.folder / "split.csv").read_text() for run in experiment.runs}) == 1
    )
    assert experiment.runs[0].epochs != experiment.runs[1].epochs
    assert [message.epoch.epoch for message in progress.messages if message.epoch is not None] == [
        1,
        2,
        1,
        2,
    ]
    # One of the two runs is lost, and its directory cannot be replaced.
    lost = RunDirectory(folder.path / experiment.runs[1].folder)
    lost.metrics.unlink()
    lost.path.joinpath("stranger.txt").write_text("not edgetl's")
    again = compare(config, recipe, progress)
    assert progress.started[2:] == [f"{ROW}-head-s1"]
    (failed,) = again.failed_runs
    assert "stranger.txt" in (failed.failed or "")
    assert [len(row.runs) for row in again.rows] == [1]
    assert read_experiment(folder.result).failed_runs == [failed]


@pytest.mark.slow
def test_compare_with_resnet50(parts: Path, tmp_path: Path) -> None:
    config = CompareConfig(
        tmp_path / "out",
        ("resnet50",),
        ("scratch",),
        seeds=1,
        image_sizes=(32,),
        epochs=2,
        bench=False,
    )
    (row,) = compare(config, FinetuneConfig(parts, weights="none", workers=0, device="cpu")).rows
    assert row.name == "resnet50-32-scratch"
    assert row.first_run.parameters == 23_508_032 + 5 * 2048 + 5
    assert row.first_run.trainable == row.first_run.parameters


def test_latency_budget_drops_slow_networks_before_training(
    recipe: FinetuneConfig, tmp_path: Path
) -> None:
    folder = ExperimentDirectory(tmp_path / "out")
    folder.path.mkdir()
    rows = (
        candidate(ARCHITECTURE, [2.0, 2.0], IMAGE_SIZE),
        candidate("resnet50", [9.0, 9.0], IMAGE_SIZE),
    )
    write_result(
        replace(result_of(*rows), classes=5, device=collect_device_info()), folder.candidates
    )
    progress = RecordingProgress()
    config = compare_config(
        folder.path,
        models=(ARCHITECTURE, "resnet50"),
        strategies=("head",),
        latency_budget_ms=5.0,
        epochs=2,
    )
    plan = plan_experiment(config, recipe, progress)
    assert [run.name for run in plan.runs] == [f"{ROW}-head-s0"]
    assert plan.remaining_seconds > 0
    assert (
        f"Dropped, above the latency budget of 5 ms: resnet50-{IMAGE_SIZE} (9.00 ms)."
        in progress.notes
    )
    assert plan.candidates is not None
    assert [
        (network.network, network.fits) for network in to_screened_networks(plan.candidates)
    ] == [
        (ROW, True),
        (f"resnet50-{IMAGE_SIZE}", False),
    ]
    with pytest.raises(
        BenchError,
        match=r"No network is within latency_budget_ms 1 ms: the fastest, .* has 2\.00 ms",
    ):
        plan_experiment(replace(config, latency_budget_ms=1.0), recipe)


@pytest.mark.usefixtures("not_estimated")
def test_interrupted_latency_measurement_is_repeated(
    recipe: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[CandidatesConfig] = []

    def time_candidates(request: CandidatesConfig, report: object) -> CandidatesResult:
        requests.append(request)
        return replace(
            result_of(candidate(ARCHITECTURE, [2.0, 2.0], IMAGE_SIZE), budget_ms=5.0), classes=5
        )

    monkeypatch.setattr(plan_module, "time_candidates", time_candidates)
    folder = ExperimentDirectory(tmp_path / "out")
    folder.path.mkdir()
    interrupted = replace(
        result_of(candidate(ARCHITECTURE, [9.0, 9.0], IMAGE_SIZE)),
        classes=5,
        device=collect_device_info(),
        interrupted=True,
    )
    write_result(interrupted, folder.candidates)
    plan = plan_experiment(
        compare_config(folder.path, strategies=("head",), latency_budget_ms=5.0, epochs=2), recipe
    )
    (request,) = requests
    assert (request.architectures, request.image_sizes, request.classes) == (
        (ARCHITECTURE,),
        (IMAGE_SIZE,),
        5,
    )
    assert (request.latency_budget_ms, request.output) == (5.0, folder.candidates)
    assert not folder.candidates.exists(), "an interrupted measurement is repeated"
    assert [run.name for run in plan.runs] == [f"{ROW}-head-s0"]


def test_compare_reports_errors_before_training(recipe: FinetuneConfig, tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError, match="no classifier 'mobilnet'"):
        compare(compare_config(tmp_path / "a", models=("mobilnet",)), recipe)
    with pytest.raises(DataError):
        compare(compare_config(tmp_path / "b"), replace(recipe, data=tmp_path / "nothing"))
    with pytest.raises(WeightsError):
        compare(
            compare_config(tmp_path / "c"),
            replace(recipe, weights=str(tmp_path / "none.safetensors")),
        )
    with pytest.raises(ConfigError, match="must not contain"):
        compare(compare_config(recipe.data / "out"), recipe)
    with pytest.raises(ConfigError, match="validation images"):
        compare(compare_config(tmp_path / "d"), replace(recipe, val_split=0.0))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("important")
    with pytest.raises(ConfigError, match="is not an experiment"):
        compare(compare_config(tmp_path / "mine"), recipe)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


@pytest.mark.slow
def test_interrupt_keeps_finished_runs_and_prints_next_step(
    parts: Path, random_weights: Path, tmp_path: Path
) -> None:
    folder = ExperimentDirectory(tmp_path / "out")
    arguments = command(parts, random_weights, folder.path, "--strategies", "head,finetune")
    process = subprocess.Popen(
        [sys.executable, "-m", "edgetl", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    wait_for(lambda: RunDirectory(folder.runs / f"{ROW}-finetune-s0").config.is_file())
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command to resume" in stderr
    experiment = read_experiment(folder.result)
    assert [run.strategy for run in experiment.runs] == ["head"]
    assert len(experiment.unfinished_run_names) == 1
    assert not list(folder.path.glob(".cache-*"))
