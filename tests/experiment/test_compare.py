"""Real processes: an experiment that is killed and goes on, one with a network that fails, and one within a latency budget."""

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
from edgetl.experiment import plan as preparing
from edgetl.experiment.compare import compare, plan_experiment
from edgetl.experiment.matrix import PlannedRun
from edgetl.experiment.plan import to_screened_networks, write_plan
from tests.conftest import ARCHITECTURE, IMAGE_SIZE, ROOT
from tests.helpers import forking
from tests.helpers.candidates import candidate, result_of

ROW = f"{ARCHITECTURE}-{IMAGE_SIZE}"
STRATEGIES = ("head", "finetune", EQUAL_TIME, "scratch")


@pytest.fixture
def not_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process that times steps beforehand, which takes as long as a run does here."""
    monkeypatch.setattr(
        preparing,
        "_estimate_run_seconds",
        lambda runs, watcher, scratch: {run.name: 1.0 for run in runs},
    )


class Watched:
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.begun: list[str] = []
        self.results: dict[str, StrategyRun] = {}
        self.messages: list[Mapping[str, Any]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def on_bench_progress(self, done: int, total: int, text: str) -> None:
        pass

    def on_plan(
        self, runs: Sequence[PlannedRun], finished: Sequence[str], seconds: Mapping[str, float]
    ) -> None:
        assert {run.name for run in runs} >= set(seconds)

    def on_run_start(self, run: PlannedRun) -> None:
        self.begun.append(run.name)

    def on_run_message(self, run: PlannedRun, message: Mapping[str, Any]) -> None:
        self.messages.append(message)

    def on_run_end(self, run: PlannedRun, result: StrategyRun) -> None:
        self.results[run.name] = result


@pytest.fixture(scope="module")
def recipe(parts: Path, random_weights: Path) -> FinetuneConfig:
    return FinetuneConfig(parts, weights=str(random_weights), device="cpu", **RECIPE)


def experiment_of(folder: Path, **more: Any) -> CompareConfig:
    given: dict[str, Any] = {
        "models": (ARCHITECTURE,),
        "seeds": 1,
        "image_sizes": (IMAGE_SIZE,),
        "epochs": 3,
        "bench": False,
    }
    return CompareConfig(folder, **{**given, **more})


RECIPE: dict[str, Any] = {"lr": 0.02, "finetune_lr": 0.002, "workers": 0}
"""Random features have small logits, and an export refuses ties: they must be learnt from in a few steps."""


def command(data: Path, weights: Path, folder: Path, *more: str) -> list[str]:
    config = folder.parent / "recipe.toml"
    config.write_text("".join(f"{name} = {value}\n" for name, value in RECIPE.items()))
    return [
        "compare", str(data), "--models", ARCHITECTURE, "--seeds", "1", "--image-size", str(IMAGE_SIZE),
        "--epochs", "3", "--weights", str(weights), "--config", str(config), "--device", "cpu", "-o", str(folder), "--json", *more,
    ]  # fmt: skip


def children_of(pid: int) -> list[int]:
    return [
        int(child)
        for path in Path(f"/proc/{pid}/task").glob("*/children")
        for child in path.read_text().split()
    ]


@pytest.fixture(scope="module")
def gone_on(
    forked: Callable[..., subprocess.CompletedProcess[str]],
    parts: Path,
    random_weights: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, float], str, list[int]]:
    """An experiment killed by SIGKILL while its third run trained, then started again: folder, times of what had ended, output, orphans."""
    folder = ExperimentDirectory(tmp_path_factory.mktemp("experiment") / "pets")
    asked = command(parts, random_weights, folder.path)
    first = forking.start(asked, ROOT, tmp_path_factory.mktemp("said"))
    assert first.pid is not None
    ended = [RunDirectory(folder.runs / f"{ROW}-{strategy}-s0") for strategy in STRATEGIES[:2]]
    third = RunDirectory(folder.runs / f"{ROW}-{STRATEGIES[2]}-s0")
    wait_for(third.config.is_file, first.is_alive)
    children = children_of(first.pid)
    first.kill()
    first.join()
    assert children
    times = {run.path.name: run.metrics.stat().st_mtime_ns for run in ended}
    wait_for(
        lambda: (
            not any(
                Path(f"/proc/{child}/cmdline").exists()
                and Path(f"/proc/{child}/cmdline").read_bytes()
                for child in children
            )
        )
    )
    second = forked(*asked)
    assert second.returncode == 0, second.stderr
    return folder.path, times, second.stdout + "\0" + second.stderr, children


def wait_for(
    met: Callable[[], bool], alive: Callable[[], bool] | None = None, seconds: float = 120
) -> None:
    give_up = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < give_up, "it never came"
        assert alive is None or alive(), "it ended by itself"
        time.sleep(0.02)


def test_killed_in_the_middle_it_goes_on_without_repeating_a_run(
    gone_on: tuple[Path, dict[str, float], str, list[int]],
) -> None:
    folder, times, said, _ = gone_on
    runs = ExperimentDirectory(folder).runs
    assert {name: (runs / name / "metrics.json").stat().st_mtime_ns for name in times} == times
    assert sorted(path.name for path in runs.iterdir()) == sorted(
        f"{ROW}-{strategy}-s0" for strategy in STRATEGIES
    )
    assert "4 runs, 2 already finished" in said
    assert "[1/4]" not in said.partition("\0")[2]
    found = read_experiment(ExperimentDirectory(folder).result)
    assert not found.unfinished_run_names
    assert not found.failed_runs
    assert not list(folder.glob(".cache-*")) or len(list(folder.glob(".cache-*"))) == 1, (
        "the killed one's cache alone may be left"
    )


def test_its_figures_are_those_of_the_run_directories(
    gone_on: tuple[Path, dict[str, float], str, list[int]],
) -> None:
    folder, _, said, _ = gone_on
    found = read_experiment(ExperimentDirectory(folder).result)
    printed = json.loads(said.partition("\0")[0])
    assert printed["kind"] == "compare"
    assert [row["strategy"] for row in printed["rows"]] == [
        "scratch",
        EQUAL_TIME,
        "head",
        "finetune",
    ]
    for run in found.runs:
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
            "one run's work must not shorten another"
        )
    by_strategy = {run.strategy: run for run in found.runs}
    assert {len(run.epochs) for run in found.runs if run.strategy != EQUAL_TIME} == {3}
    config = json.loads((folder / by_strategy[EQUAL_TIME].folder / "config.json").read_text())[
        "config"
    ]
    assert config["budget_s"] == by_strategy["finetune"].seconds
    assert (
        by_strategy["head"].trainable
        < by_strategy["finetune"].trainable
        < by_strategy["scratch"].trainable
    )
    splits = {(folder / run.folder / "split.csv").read_text() for run in found.runs}
    assert len(splits) == 1


def test_the_recommended_run_is_exported_and_timed_once(
    gone_on: tuple[Path, dict[str, float], str, list[int]],
) -> None:
    folder, _, _, _ = gone_on
    found = read_experiment(ExperimentDirectory(folder).result)
    (one,) = found.deployed_models
    row = found.recommend_strategy(found.networks[0])
    assert row is not None
    assert one.failed is None
    assert one.run == row.best_run.name
    bundle = BundleDirectory(folder / row.best_run.folder / "bundle")
    assert one.file_bytes == bundle.variant("fp32").stat().st_size
    assert one.p50_ms is not None
    assert len(list((folder / row.best_run.folder / "bench").glob("*.json"))) == 1


def test_what_is_written_is_for_people_too(
    gone_on: tuple[Path, dict[str, float], str, list[int]],
) -> None:
    folder, _, _, _ = gone_on
    table = ExperimentDirectory(folder).table.read_text()
    assert f"## {ROW}, equal epochs\n" in table
    assert f"| {EQUAL_TIME} |" in table or f"| {EQUAL_TIME} * |" in table
    assert "## Differences" in table


def test_finished_it_does_nothing_more(
    gone_on: tuple[Path, dict[str, float], str, list[int]], recipe: FinetuneConfig
) -> None:
    folder, _, _, _ = gone_on
    before = read_experiment(ExperimentDirectory(folder).result)
    watched = Watched()
    again = compare(
        experiment_of(folder, strategies=("scratch", "head", "finetune"), bench=True),
        recipe,
        watched,
    )
    assert watched.begun == []
    assert again.runs == before.runs
    assert again.deployed_models == before.deployed_models


def test_another_plan_is_refused(
    gone_on: tuple[Path, dict[str, float], str, list[int]], recipe: FinetuneConfig
) -> None:
    folder, _, _, _ = gone_on
    with pytest.raises(ConfigError, match=r"another plan: .*epochs was"):
        plan_experiment(experiment_of(folder, epochs=5), recipe)
    with pytest.raises(ConfigError, match=r"another plan: .*batch_size was None, is 4"):
        plan_experiment(experiment_of(folder), replace(recipe, batch_size=4))


@pytest.mark.usefixtures("not_estimated")
def test_a_plan_that_was_gone_on_with_by_others_still_knows_its_first_runs(
    gone_on: tuple[Path, dict[str, float], str, list[int]], recipe: FinetuneConfig, tmp_path: Path
) -> None:
    folder = ExperimentDirectory(tmp_path / "copy")
    shutil.copytree(gone_on[0], folder.path)
    other = experiment_of(folder.path, strategies=("scratch",), epochs=2, image_sizes=(32,))
    write_plan(folder, plan_experiment(other, recipe), other, recipe)
    with pytest.raises(ConfigError, match="another plan"):
        plan_experiment(experiment_of(folder.path, epochs=2), recipe)
    content = json.loads(folder.plan.read_text())
    del content["runs"][f"{ROW}-head-s0"]
    folder.plan.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="its plan does not know"):
        plan_experiment(experiment_of(folder.path), recipe)


def test_a_second_process_on_the_same_folder_is_refused(
    gone_on: tuple[Path, dict[str, float], str, list[int]], recipe: FinetuneConfig
) -> None:
    folder = ExperimentDirectory(gone_on[0])
    with (folder.path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="Another process works on"):
            compare(experiment_of(folder.path), recipe)
    left = folder.path / ".cache-left"
    left.mkdir()
    found = compare(experiment_of(folder.path), recipe)
    assert not left.exists()
    assert len(found.deployed_models) == 1, "what was timed before is not lost by --no-bench"


@pytest.mark.usefixtures("not_estimated")
def test_several_seeds_share_a_split_and_a_failure_does_not_stop_the_rest(
    recipe: FinetuneConfig, make_images: Callable[..., Path], tmp_path: Path
) -> None:
    watched = Watched()
    recipe = replace(recipe, data=make_images("flat", ["blue", "green", "red"], count=10))
    folder = ExperimentDirectory(tmp_path / "out")
    config = experiment_of(folder.path, strategies=("head",), seeds=2, epochs=2)
    found = compare(config, recipe, watched)
    assert watched.begun == [f"{ROW}-head-s0", f"{ROW}-head-s1"]
    assert len({(folder.path / run.folder / "split.csv").read_text() for run in found.runs}) == 1
    assert found.runs[0].epochs != found.runs[1].epochs
    assert [message["epoch"]["epoch"] for message in watched.messages if "epoch" in message] == [
        1,
        2,
        1,
        2,
    ]
    # One of the two is lost, and cannot be made again.
    lost = RunDirectory(folder.path / found.runs[1].folder)
    lost.metrics.unlink()
    lost.path.joinpath("stranger.txt").write_text("not edgetl's")
    again = compare(config, recipe, watched)
    assert watched.begun[2:] == [f"{ROW}-head-s1"]
    (failed,) = again.failed_runs
    assert "stranger.txt" in (failed.failed or "")
    assert [len(row.runs) for row in again.rows] == [1]
    assert read_experiment(folder.result).failed_runs == [failed]


def test_resnet50_takes_the_same_path(parts: Path, tmp_path: Path) -> None:
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


def test_a_latency_budget_drops_what_is_too_slow_before_anything_is_trained(
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
    watched = Watched()
    config = experiment_of(
        folder.path,
        models=(ARCHITECTURE, "resnet50"),
        strategies=("head",),
        latency_budget_ms=5.0,
        epochs=2,
    )
    plan = plan_experiment(config, recipe, watched)
    assert [run.name for run in plan.runs] == [f"{ROW}-head-s0"]
    assert plan.remaining_seconds > 0
    assert (
        f"Dropped, above --latency-budget 5 ms: resnet50-{IMAGE_SIZE} (9.00 ms)." in watched.notes
    )
    assert plan.candidates is not None
    assert [(one.network, one.fits) for one in to_screened_networks(plan.candidates)] == [
        (ROW, True),
        (f"resnet50-{IMAGE_SIZE}", False),
    ]
    with pytest.raises(
        BenchError,
        match=r"No network is within --latency-budget 1 ms: the fastest, .* has 2\.00 ms",
    ):
        plan_experiment(replace(config, latency_budget_ms=1.0), recipe)


@pytest.mark.usefixtures("not_estimated")
def test_networks_are_timed_where_they_were_not_yet(
    recipe: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[CandidatesConfig] = []

    def time_candidates(wanted: CandidatesConfig, report: object) -> CandidatesResult:
        asked.append(wanted)
        return replace(
            result_of(candidate(ARCHITECTURE, [2.0, 2.0], IMAGE_SIZE), budget_ms=5.0), classes=5
        )

    monkeypatch.setattr(preparing, "time_candidates", time_candidates)
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
        experiment_of(folder.path, strategies=("head",), latency_budget_ms=5.0, epochs=2), recipe
    )
    (wanted,) = asked
    assert (wanted.architectures, wanted.image_sizes, wanted.classes) == (
        (ARCHITECTURE,),
        (IMAGE_SIZE,),
        5,
    )
    assert (wanted.latency_budget_ms, wanted.output) == (5.0, folder.candidates)
    assert not folder.candidates.exists(), "one that was interrupted is measured again"
    assert [run.name for run in plan.runs] == [f"{ROW}-head-s0"]


def test_what_is_wrong_is_told_before_anything_is_trained(
    recipe: FinetuneConfig, tmp_path: Path
) -> None:
    with pytest.raises(ArchitectureError, match="no classifier 'mobilnet'"):
        compare(experiment_of(tmp_path / "a", models=("mobilnet",)), recipe)
    with pytest.raises(DataError):
        compare(experiment_of(tmp_path / "b"), replace(recipe, data=tmp_path / "nothing"))
    with pytest.raises(WeightsError):
        compare(
            experiment_of(tmp_path / "c"),
            replace(recipe, weights=str(tmp_path / "none.safetensors")),
        )
    with pytest.raises(ConfigError, match="lie in each other"):
        compare(experiment_of(recipe.data / "out"), recipe)
    with pytest.raises(ConfigError, match="validation images"):
        compare(experiment_of(tmp_path / "d"), replace(recipe, val_split=0.0))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("important")
    with pytest.raises(ConfigError, match="is no experiment"):
        compare(experiment_of(tmp_path / "mine"), recipe)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def test_ctrl_c_keeps_what_has_ended_and_says_how_to_go_on(
    parts: Path, random_weights: Path, tmp_path: Path
) -> None:
    folder = ExperimentDirectory(tmp_path / "out")
    asked = command(parts, random_weights, folder.path, "--strategies", "head,finetune")
    process = subprocess.Popen(
        [sys.executable, "-m", "edgetl", *asked], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    wait_for(lambda: RunDirectory(folder.runs / f"{ROW}-finetune-s0").config.is_file())
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command to resume" in said
    found = read_experiment(folder.result)
    assert [run.strategy for run in found.runs] == ["head"]
    assert len(found.unfinished_run_names) == 1
    assert not list(folder.path.glob(".cache-*"))
