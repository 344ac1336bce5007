from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgetl.core.artifacts.experiment import DeployedModel, read_experiment
from edgetl.core.config.compare import EQUAL_TIME
from edgetl.core.errors import RunError
from edgetl.core.formatting import MISSING_VALUE
from edgetl.report.compare.tables import strategies_table
from tests.helpers.experiments import made_experiment, made_run

M, S = "mobilenet_v2-224", "squeezenet1_1-224"


def test_recommends_fastest_strategy_not_shown_worse() -> None:
    experiment = made_experiment(
        {f"{M}/scratch": (0.6, 200), f"{M}/head": (0.90, 10), f"{M}/finetune": (0.91, 40)}
    )
    recommended = experiment.recommend_strategy(M)
    assert recommended is not None
    assert recommended.first_run.strategy == "head"
    pair = experiment.find_comparison(f"{M}-finetune", f"{M}-head")
    assert pair is not None
    assert pair.verdict == "no difference shown"
    scratch_pair = experiment.find_comparison(f"{M}-head", f"{M}-scratch")
    assert scratch_pair is not None
    assert scratch_pair.verdict == "more accurate"
    assert scratch_pair.difference.value == pytest.approx(0.3)
    assert scratch_pair.difference.low > 0.2


def test_less_accurate_strategy_is_not_recommended() -> None:
    experiment = made_experiment({f"{M}/head": (0.70, 10), f"{M}/finetune": (0.91, 40)})
    recommended = experiment.recommend_strategy(M)
    assert recommended is not None
    assert recommended.first_run.strategy == "finetune"


def test_comparisons_share_network_or_strategy() -> None:
    names = [f"{network}/{strategy}" for network in (M, S) for strategy in ("scratch", "head")]
    experiment = made_experiment(dict.fromkeys(names, (0.8, 10.0)))
    pairs = {frozenset((pair.first, pair.second)) for pair in experiment.comparisons}
    row = {name: name.replace("/", "-") for name in names}
    assert pairs == {
        frozenset((row[names[0]], row[names[1]])), frozenset((row[names[2]], row[names[3]])),
        frozenset((row[names[0]], row[names[2]])), frozenset((row[names[1]], row[names[3]])),
    }  # fmt: skip


def test_seconds_to_accuracy_is_median_over_seeds() -> None:
    slow = made_run(M, "head", 0.79, 40.0, seed=2)
    experiment = made_experiment({f"{M}/head": (0.9, 40.0)}, seeds=2, more=(slow,))
    (row,) = experiment.rows
    assert row.seconds_to_accuracy(0.8) == 40.0, "the last of four epochs"
    assert row.seconds_to_accuracy(0.6) == 30.0
    assert row.seconds_to_accuracy(0.85) == 40.0
    assert row.seconds_to_accuracy(0.95) is None
    assert row.mean_accuracy_within(9.0) is None
    assert row.mean_accuracy_within(20.0) == pytest.approx((0.45 + 0.45 + 0.395) / 3)
    assert row.val_range == (0.79, 0.9)
    low, high = row.ci95
    assert low < row.val_accuracy < high


def test_experiment_round_trips_through_file(tmp_path: Path) -> None:
    deployed = (
        DeployedModel(M, f"{M}-head-s0", 9_000_000, 4.2, (4.1, 4.4), noisy=True, threads=2),
        DeployedModel(S, "x", 0, None, None, False, 0, "why"),
    )
    rows = {f"{M}/scratch": (0.5, 100.0), f"{M}/head": (0.9, 9.0)}
    experiment = made_experiment(
        rows, 2, deployed, tmp_path, (made_run(S, "head", 0, 0, failed="out of memory"),)
    )
    experiment.write(tmp_path / "compare.json")
    assert read_experiment(tmp_path / "compare.json") == experiment
    content = json.loads((tmp_path / "compare.json").read_text())
    assert content["recommended"] == {M: f"{M}-head"}
    assert [row["id"] for row in content["rows"]] == [f"{M}-scratch", f"{M}-head"]
    assert content["rows"][1]["seconds_to_target"] == 9.0
    assert {pair["verdict"] for pair in content["pairs"]} == {"more accurate"}
    assert experiment.failed_runs[0].name == f"{S}-head-s0"


def test_test_accuracy_is_a_mean_over_seeds(tmp_path: Path) -> None:
    rows = {f"{M}/head": (0.9, 9.0), f"{M}/full": (0.95, 20.0)}
    experiment = made_experiment(rows, 2, folder=tmp_path)
    assert "test" not in json.dumps(experiment.to_json()["rows"])
    first, second, *others = experiment.runs
    tested = (replace(first, test_correct="1" * 10), replace(second, test_correct="1110111111"))
    experiment = replace(experiment, runs=(*tested, *others))
    head, full = experiment.rows
    assert head.test_accuracy == pytest.approx(0.95)
    assert head.test_interval == pytest.approx((0.722, 1.0), abs=1e-3)
    assert full.test_accuracy is full.test_interval is None
    experiment.write(tmp_path / "compare.json")
    assert read_experiment(tmp_path / "compare.json") == experiment
    row, _ = json.loads((tmp_path / "compare.json").read_text())["rows"]
    assert (row["test_accuracy"], row["test_ci95"]) == (head.test_accuracy, [*head.test_interval])
    table = strategies_table(experiment, M)
    column = table.columns.index("test [95%]")
    assert [cells[column] for cells in table.rows] == ["95.0% [72.2%, 100.0%]", MISSING_VALUE]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema": 1, "kind": "bench"}', "is not an experiment"),
        ('{"schema": 1, "kind": "compare"}', "is broken"),
        ('{"schema": 1, "kind": "compare", "created": ""}', "is broken: it has no field 'edgetl'"),
        ("{", "not valid JSON"),
    ],
)
def test_read_rejects_other_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "compare.json"
    path.write_text(content)
    with pytest.raises(RunError, match=message):
        read_experiment(path)


def test_equal_time_scratch_is_never_recommended() -> None:
    experiment = made_experiment({f"{M}/{EQUAL_TIME}": (0.90, 8.0), f"{M}/finetune": (0.91, 40)})
    recommended = experiment.recommend_strategy(M)
    assert recommended is not None
    assert recommended.first_run.strategy == "finetune"
    assert made_experiment({f"{M}/{EQUAL_TIME}": (0.90, 8.0)}).recommend_strategy(M) is None


def test_recommends_most_accurate_of_similar_times() -> None:
    experiment = made_experiment({f"{M}/head": (0.90, 58.0), f"{M}/finetune": (0.91, 60.0)})
    recommended = experiment.recommend_strategy(M)
    assert recommended is not None
    assert recommended.first_run.strategy == "finetune"
