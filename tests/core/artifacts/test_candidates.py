from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from edgetl.cli.app import format_error
from edgetl.core.artifacts.storage import check_output_path, store_result
from edgetl.core.config.candidates import CandidatesConfig
from edgetl.core.errors import BenchError, ConfigError
from tests.helpers.candidates import candidate, result_of

STEADY = (3.8, 4.2, 4.0, 3.9, 4.1, 4.0, 3.8, 4.2)


def test_all_config_errors_are_reported_together() -> None:
    with pytest.raises(ConfigError) as raised:
        CandidatesConfig(
            (),
            classes=1,
            image_sizes=(16, 224, 31),
            latency_budget_ms=float("nan"),
            threads=0,
            rounds=1,
            seed=-1,
        )
    assert format_error(raised.value).splitlines() == [
        "--classes must be >= 2, got 1.",
        "--image-size must be >= 32 pixels, got 16.",
        "--latency-budget must be > 0, got nan ms.",
        "--threads must be >= 1, got 0.",
        "--rounds must be >= 2 (an interval needs two), got 1.",
        "--seed must be >= 0, got -1.",
        "ARCHITECTURES must name at least one architecture; `edgetl models` lists them.",
    ]


@pytest.mark.parametrize(
    ("budget", "fits"),
    [(5.0, True), (4.21, True), (4.04, None), (3.96, None), (3.79, False), (None, None)],
)
def test_budget_is_compared_with_interval(budget: float | None, fits: bool | None) -> None:
    row = candidate("resnet18", STEADY)
    assert row.p50_ms == 4.0
    assert row.ci95_ms is not None
    low, high = row.ci95_ms
    assert 3.8 <= low <= 3.95 < 4.05 <= high <= 4.2
    assert row.fits_budget(budget) is fits


def test_noise_widens_interval_for_budget() -> None:
    row = candidate("resnet18", STEADY)
    assert row.fits_budget(4.25) is True
    assert row.fits_budget(4.25, noisy=True) is None
    assert row.fits_budget(5.0, noisy=True) is True
    assert row.fits_budget(3.0, noisy=True) is False
    assert result_of(row, budget_ms=4.25, reasons=("steal",)).undecided_rows == [row]


def test_interval_contains_pooled_p50() -> None:
    # A slow block moves the pooled median away from the median of the rounds' medians.
    row = candidate("resnet18", (1.0, 9.0))
    assert row.ci95_ms is not None
    assert row.p50_ms is not None
    assert row.ci95_ms[0] <= row.p50_ms <= row.ci95_ms[1]


def test_untimed_candidate_has_no_statistics() -> None:
    row = candidate("vgg11", failed="it cannot be exported")
    assert (row.p50_ms, row.p90_ms, row.ci95_ms, row.images_per_second, row.fits_budget(5.0)) == (
        None,
    ) * 5
    for budget in (None, 5.0):
        result = result_of(row, budget_ms=budget)
        assert (
            result.timed_rows
            == result.fitting_rows
            == result.undecided_rows
            == result.pareto_front
            == []
        )


def test_pareto_front_of_accuracy_and_size() -> None:
    strong_small = candidate("strong", [3.0] * 4, 160, 75.0)
    strong_large = candidate("strong", [9.0] * 4, 224, 75.0)
    weak_small = candidate("weak", [1.0] * 4, 160, 60.0)
    weak_large = candidate("weak", [2.0] * 4, 224, 60.0)
    unknown = candidate("unknown", [1.5] * 4, 160, None)
    rows = (strong_large, weak_small, unknown, strong_small, weak_large)
    assert result_of(*rows).pareto_front == [strong_large]
    result = result_of(*rows, budget_ms=5.0)
    assert result.fitting_rows == [weak_small, unknown, weak_large, strong_small]
    assert result.pareto_front == [strong_small, weak_large]


def test_json_has_raw_latencies_and_statistics() -> None:
    row, failed = candidate("resnet18", STEADY), candidate("vgg11", failed="no")
    content = json.loads(
        json.dumps(result_of(row, failed, budget_ms=5.0).to_json(), allow_nan=False)
    )
    assert (content["schema"], content["kind"], content["latency_budget_ms"]) == (
        1,
        "candidates",
        5.0,
    )
    first, second = content["rows"]
    assert (first["id"], first["fits"], first["p50_ms"], first["failed"]) == (
        "resnet18-224",
        True,
        4.0,
        None,
    )
    assert len(first["rounds"]) == 8
    assert first["rounds"][0]["latencies_ns"] == [3_800_000] * 100
    assert first["images_per_second"] == pytest.approx(250, abs=1)
    assert (second["failed"], second["rounds"], second["ci95_ms"], second["fits"]) == (
        "no",
        [],
        None,
        None,
    )


def test_store_result_chooses_free_name(tmp_path: Path) -> None:
    created = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def write(path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        path.open("x").close()

    first, second = (store_result(write, None, tmp_path / "bench", created)[0] for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.name.startswith("20260102T030405Z-")
    assert second.stem == f"{first.stem}-2"
    assert store_result(write, tmp_path / "mine.json", tmp_path / "bench", created) == (
        tmp_path / "mine.json",
        (),
    )


def test_check_output_path_rejects_unwritable_paths(tmp_path: Path) -> None:
    existing = tmp_path / "existing.json"
    existing.touch()
    with pytest.raises(BenchError, match="never overwritten"):
        check_output_path(existing, tmp_path)
    with pytest.raises(BenchError, match="Cannot write results"):
        check_output_path(existing / "below.json", tmp_path)
    check_output_path(None, tmp_path / "not/yet")
