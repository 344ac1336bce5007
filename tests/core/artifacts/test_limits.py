from __future__ import annotations

from dataclasses import replace

import pytest

from edgetl.core.artifacts.bench import BenchedModel, BenchResult
from edgetl.core.artifacts.comparison import EarlierPair, EarlierRow, Pair
from edgetl.core.artifacts.device import DeviceInfo
from edgetl.core.artifacts.noise import Interference, NoiseReport
from edgetl.core.config.bench import Limits
from edgetl.core.errors import ConfigError
from tests.core.artifacts.test_bench import row

EIGHT = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 1.0, 1.01]


def make_result(
    torch_ms: float = 8.0,
    onnx_ms: float = 2.0,
    spread: float = 1.0,
    noise: NoiseReport | None = None,
    **fields: object,
) -> BenchResult:
    rows = (
        row("pytorch", [int(torch_ms * 1e6 * (1 + spread * (factor - 1))) for factor in EIGHT]),
        row("onnxruntime", [int(onnx_ms * 1e6 * (1 + spread * (1 - factor))) for factor in EIGHT]),
    )
    base = BenchResult(
        "2026",
        "0.1.0",
        "run",
        BenchedModel("mobilenet_v2", None),
        DeviceInfo(),
        noise or NoiseReport(()),
        {},
        (),
        rows,
        (Pair(rows[0].id, rows[1].id),),
    )
    return replace(base, **fields)  # type: ignore[arg-type]


def with_earlier_row(earlier_ms: float, same: bool = True, **fields: object) -> BenchResult:
    result = make_result(**fields)  # type: ignore[arg-type]
    earlier = EarlierRow(
        "old.json",
        "2025",
        False,
        True,
        2,
        False,
        earlier_ms,
        tuple(earlier_ms * 1e6 * factor for factor in EIGHT),
        same,
    )
    return replace(
        result, earlier_pairs=(EarlierPair(result.rows[1].id, result.rows[1].id, earlier),)
    )


def outcomes(result: BenchResult, **limits: float) -> list[str]:
    return [check.outcome for check in replace(result, limits=Limits(**limits)).limit_checks]


@pytest.mark.parametrize(
    ("earlier_ms", "spread", "expected"),
    [
        (2.0, 1.0, "held"),
        (1.7, 1.0, "broken"),
        (2.4, 1.0, "held"),
        (1.905, 1.0, "undecided"),
        (2.0, 40.0, "undecided"),
    ],
)
def test_regression_uses_whole_interval(earlier_ms: float, spread: float, expected: str) -> None:
    assert outcomes(with_earlier_row(earlier_ms, spread=spread), max_regression=0.05) == [expected]


def test_regression_is_undecided_on_noisy_device() -> None:
    noisy = NoiseReport(("other processes used 40% of the CPU",), Interference(disturbance=0.4))
    result = replace(with_earlier_row(1.85, noise=noisy), limits=Limits(max_regression=0.0))
    assert [check.outcome for check in result.limit_checks] == ["undecided"]
    assert "was not quiet" in result.limit_checks[0].why


def test_regression_requires_same_configuration() -> None:
    assert outcomes(with_earlier_row(1.0, same=False), max_regression=0.05) == ["undecided"]


def test_regression_is_undecided_on_other_device() -> None:
    result = with_earlier_row(2.0)
    (pair,) = result.earlier_pairs
    cross_device = replace(
        result,
        earlier_pairs=(replace(pair, earlier_row=replace(pair.earlier_row, cross_device=True)),),
        limits=Limits(max_regression=0.05),
    )
    assert [check.outcome for check in cross_device.limit_checks] == ["undecided"]
    assert "another device" in cross_device.limit_checks[0].why


def test_speedup_baseline_is_eager_pytorch() -> None:
    result = make_result()
    compiled = replace(result.rows[0], variant="compile", rounds=result.rows[1].rounds)
    extended = replace(
        result,
        rows=(compiled, *result.rows),
        pairs=(Pair(compiled.id, result.rows[1].id), *result.pairs),
    )
    assert outcomes(extended, min_speedup=3.0) == ["held"]


def test_noise_widens_interval_for_limits() -> None:
    noisy = NoiseReport(("load",), Interference(disturbance=0.4))
    assert outcomes(make_result(noise=noisy), min_speedup=3.9) == ["undecided"]
    assert outcomes(make_result(noise=noisy), min_speedup=2.0) == ["held"]


def test_limit_is_undecided_without_measured_rows() -> None:
    result = make_result()
    untimed = replace(result, rows=(result.rows[0], replace(result.rows[1], rounds=())))
    assert outcomes(untimed, max_p99_ms=100.0) == ["undecided"]


@pytest.mark.parametrize(
    ("bound", "noisy", "expected"),
    [(3.0, False, "held"), (3.0, True, "held"), (1.5, False, "broken"), (1.5, True, "undecided")],
)
def test_max_p99_on_noisy_device(bound: float, noisy: bool, expected: str) -> None:
    result = make_result(noise=NoiseReport(("load",)) if noisy else None)
    assert outcomes(result, max_p99_ms=bound) == [expected]


def test_max_p99_applies_to_paced_rows_of_recommendation() -> None:
    result = make_result(onnx_ms=2.0)
    torch, best = result.rows
    slow = tuple(
        replace(block, latencies_ns=tuple(9 * value for value in block.latencies_ns))
        for block in best.rounds
    )
    larger_batch = replace(best, batch=8, rounds=slow)
    fewer_threads = replace(best, threads=1, rounds=slow)
    file_scope = replace(best, scope="file", rounds=slow)
    sweep = replace(result, rows=(torch, larger_batch, best, fewer_threads, file_scope))
    assert outcomes(sweep, max_p99_ms=3.0) == ["held"]
    paced = replace(best, rate=30.0, rounds=slow)
    sweep = replace(
        sweep,
        rows=(*sweep.rows, paced, replace(fewer_threads, rate=30.0)),
        limits=Limits(max_p99_ms=3.0),
    )
    assert [(check.row, check.outcome) for check in sweep.limit_checks] == [
        (best.id, "held"),
        (paced.id, "broken"),
    ]


def test_max_p99_is_undecided_with_too_few_runs() -> None:
    result = make_result()
    rows = tuple(replace(row, rounds=row.rounds[:3]) for row in result.rows)
    assert outcomes(replace(result, rows=rows), max_p99_ms=100.0) == ["undecided"]


@pytest.mark.parametrize(
    ("bound", "expected"), [(3.0, "held"), (5.0, "broken"), (4.0, "undecided")]
)
def test_min_speedup(bound: float, expected: str) -> None:
    assert outcomes(make_result(), min_speedup=bound) == [expected]


def test_min_speedup_is_undecided_without_baseline() -> None:
    result = make_result()
    without_baseline = replace(result, rows=result.rows[1:], pairs=())
    assert outcomes(without_baseline, min_speedup=2.0) == ["undecided"]


def test_result_json_has_limits_with_reasons() -> None:
    content = replace(make_result(), limits=Limits(min_speedup=5.0)).to_json()["limits"]
    assert content["min_speedup"] == 5.0
    assert content["judged"][0]["outcome"] == "broken"
    assert "limit 5" in content["judged"][0]["why"]


def test_all_invalid_limits_are_reported_together() -> None:
    with pytest.raises(
        ConfigError, match=r"max_regression must(.|\n)*max_p99_ms must(.|\n)*min_speedup must"
    ):
        Limits(-0.1, 0.0, float("inf"))
