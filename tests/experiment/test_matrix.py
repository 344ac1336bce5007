from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgetl.core.config.compare import EQUAL_TIME, CompareConfig
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import ConfigError
from edgetl.experiment.matrix import NetworkSpec, PlannedRun, plan_runs

RECIPE = FinetuneConfig(Path("/data"), weights="/weights")
NETWORK = NetworkSpec("mobilenet_v2", 224, 19)


def plan(
    *strategies: str, networks: tuple[NetworkSpec, ...] = (NETWORK,), **more: Any
) -> list[PlannedRun]:
    config = CompareConfig(Path("/out"), strategies=strategies, **{"seeds": 1, **more})
    return plan_runs(config, RECIPE, networks, Path("/out/runs"))


def test_runs_have_equal_epochs_and_the_same_split() -> None:
    runs = {
        run.strategy: run.config for run in plan("scratch", "head", "finetune", "full", epochs=16)
    }
    assert {config.epochs + (config.finetune_epochs or 0) for config in runs.values()} == {16}
    assert {config.resolved_split_seed for config in runs.values()} == {0}
    assert (runs["scratch"].weights, runs["head"].weights) == ("none", "/weights")
    assert (runs["head"].epochs, runs["head"].finetune_epochs) == (16, 0)
    assert (
        runs["finetune"].epochs,
        runs["finetune"].finetune_epochs,
        runs["finetune"].unfreeze,
    ) == (10, 6, "auto")
    assert runs["full"].unfreeze == "all"
    assert runs["head"].output == Path("/out/runs/mobilenet_v2-224-head-s0")


def test_seeds_share_the_split_and_run_in_order() -> None:
    runs = plan("head", "scratch", seeds=2, networks=(NETWORK, NetworkSpec("resnet50", 64, 17)))
    assert [run.seed for run in runs] == [0] * 6 + [1] * 6
    assert {run.config.resolved_split_seed for run in runs} == {0}
    assert len({run.name for run in runs}) == len(runs)
    assert {run.config.seed for run in runs} == {0, 1}


def test_scratch_also_runs_in_the_time_of_the_pretrained_run() -> None:
    runs = plan("scratch", "head", "finetune")
    assert [run.strategy for run in runs] == ["head", "finetune", EQUAL_TIME, "scratch"], (
        "fast strategies first"
    )
    assert [run.budget_run for run in runs] == [None, None, "mobilenet_v2-224-finetune-s0", None]
    assert [run.strategy for run in plan("scratch")] == ["scratch"], "no pretrained run sets a time"
    assert EQUAL_TIME not in {run.strategy for run in plan("scratch", "head", budget_s=60.0)}, (
        "all runs have the same time budget"
    )


def test_freeze_sweep_covers_all_to_no_blocks() -> None:
    runs = {run.strategy: run.config.unfreeze for run in plan("freeze-sweep")}
    assert runs == {
        "head": "head",
        "freeze-75": "5",
        "freeze-50": "9",
        "freeze-25": "14",
        "full": "all",
    }
    assert [run.strategy for run in plan("freeze-sweep", "full", "head", "head")] == list(runs), (
        "each strategy once"
    )


@pytest.mark.parametrize("options", [{"seeds": 2, "epochs": 2}, {"epochs": 3}, {"epochs": 40}])
def test_each_phase_has_at_least_one_epoch(options: dict[str, int]) -> None:
    for run in plan("finetune", **options):
        assert run.config.epochs >= 1
        assert (run.config.finetune_epochs or 0) >= 1
        assert run.config.epochs + (run.config.finetune_epochs or 0) == options["epochs"]


def test_config_reports_all_errors_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        CompareConfig(Path("/out"), (), ("heads",), 0, (16,), 1, -1.0, 1.5, 0.0)
    assert [line.split(",")[0] for line in str(error.value).splitlines()] == [
        "models must name at least one architecture; `edgetl models` lists them.",
        "strategies must be among scratch",
        "seeds must be >= 1",
        "image_sizes must be >= 32 pixels",
        "epochs must be >= 2 (one for each phase)",
        "budget_s must be > 0",
        "target_accuracy must be <= 1",
        "latency_budget_ms must be > 0",
    ]


def test_pretrained_strategies_need_weights() -> None:
    config = CompareConfig(Path("/out"), strategies=("scratch", "head"), seeds=1)
    with pytest.raises(ConfigError, match=r"^weights none does not work with head: "):
        plan_runs(
            config, FinetuneConfig(Path("/data"), weights="none"), [NETWORK], Path("/out/runs")
        )
