"""Files written before modules and names changed are read as before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgetl.core.artifacts.bench_json import read_result
from edgetl.core.artifacts.bundle import read_bundle_record
from edgetl.core.artifacts.candidates import read_candidates
from edgetl.core.artifacts.experiment import read_experiment
from edgetl.core.artifacts.run import (
    append_epoch,
    read_run_record,
    write_history,
    write_predictions,
)
from edgetl.core.artifacts.run_config import read_run_configuration
from edgetl.core.paths import ExperimentDirectory, RunDirectory
from edgetl.core.typed_json import to_json

RECORDED = Path(__file__).parent / "recorded/before-renaming"


def test_recorded_run_is_read() -> None:
    record = read_run_record(RECORDED / "run")
    assert record.classes == ("circles", "noise", "stripes")
    assert record.metrics is not None
    assert len(record.history) == 4
    assert record.predictions is not None
    assert len(record.predictions) == 24


def test_recorded_run_configuration_is_read() -> None:
    configuration = read_run_configuration(RunDirectory(RECORDED / "run"))
    assert configuration.requested_config.model == "mobilenet_v3_small"
    assert configuration.requested_config.deterministic


@pytest.mark.parametrize("name", ["config.json", "metrics.json"])
def test_recorded_run_is_written_as_before(name: str) -> None:
    record = read_run_record(RECORDED / "run")
    assert record.metrics is not None
    parts = {"config.json": record.configuration, "metrics.json": record.metrics}
    recorded = json.loads((RECORDED / "run" / name).read_text())
    written = {"schema": 1, **to_json(parts[name])}
    if name == "config.json":
        _remove_new_options(written["config"], written["asked"])
    assert json.dumps(written) == json.dumps(recorded)


def _remove_new_options(*configs: dict[str, Any]) -> None:
    """Remove the options added since the files were recorded, which have their defaults."""
    for config in configs:
        assert config.pop("interpolation") == "auto"
        assert config.pop("test_split") == 0.0


def test_recorded_epochs_and_predictions_are_written_as_before(tmp_path: Path) -> None:
    record = read_run_record(RECORDED / "run")
    run = RunDirectory(tmp_path)
    write_history(run, record.history[:2])
    for epoch in record.history[2:]:
        append_epoch(run, epoch)
    write_predictions(run.predictions, record.predictions or ())
    for name in ("history.jsonl", "predictions.csv"):
        assert (tmp_path / name).read_bytes() == (RECORDED / "run" / name).read_bytes()


def test_recorded_bundle_is_read() -> None:
    bundle = read_bundle_record(RECORDED / "run/bundle")
    fp32, int8 = bundle.variants
    assert (fp32.name, int8.name) == ("fp32", bundle.manifest.recommended)
    assert fp32.parity.path.images == fp32.parity.network.images == 24
    assert int8.search.chosen.summary == int8.report.method
    assert int8.latency.verdict == "faster"


def test_recorded_bundle_keeps_its_keys() -> None:
    path = RECORDED / "run/bundle"
    stored = json.loads((path / "bundle.json").read_text())
    written = {"schema": 1, **to_json(read_bundle_record(path).manifest)}
    for variant in written["variants"]:
        # Only this key is new: it used to be missing for smaller variants.
        assert variant["parity"]["path"].pop("max_grey_levels") in (1, None)
    for variant in stored["variants"]:
        variant["parity"]["path"].pop("max_grey_levels", None)
    assert written == stored


def test_recorded_benchmark_keeps_its_statistics() -> None:
    result = read_result(RECORDED / "bench.json")
    stored = json.loads((RECORDED / "bench.json").read_text())
    assert [row.percentile_ms(50) for row in result.rows] == pytest.approx(
        [row["p50_ms"] for row in stored["rows"]]
    )
    assert [pair.speedup.ratio for pair in result.comparisons] == pytest.approx(
        [pair["speedup"] for pair in stored["comparisons"]]
    )


def test_recorded_candidates_are_read() -> None:
    result = read_candidates(RECORDED / "candidates.json")
    assert [row.architecture for row in result.rows] == ["mobilenet_v3_small"]


def test_recorded_experiment_is_read() -> None:
    experiment = read_experiment(ExperimentDirectory(RECORDED / "experiment").result)
    assert len(experiment.runs) == 6
    assert experiment.recommend_strategy(experiment.networks[0]) is not None


def test_recorded_experiment_is_written_as_before() -> None:
    path = ExperimentDirectory(RECORDED / "experiment").result
    recorded = json.loads(path.read_text())
    written = json.loads(json.dumps({"schema": 1, **read_experiment(path).to_json()}))
    _remove_new_options(written["config"]["recipe"])
    assert written == recorded
