from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.core.artifacts.sustained import LatencyWindow, SustainedResult, _find_mser_cut
from edgetl.core.typed_json import parse_as, to_json


def make_result(medians_ms: list[float], **states: list[int | None]) -> SustainedResult:
    """Return a result with one window a second and 101 latencies around each median."""
    generator = random.Random(0)
    windows = []
    for second, median_ms in enumerate(medians_ms):
        latencies = tuple(
            sorted(int(median_ms * 1e6 * generator.uniform(0.98, 1.02)) for _ in range(101))
        )
        state = {name: values[second] for name, values in states.items()}
        windows.append(LatencyWindow(float(second), latencies, **state))  # type: ignore[arg-type]
    return SustainedResult(
        "onnxruntime-fp32-model-cpu-b1-t2", float(len(medians_ms)), tuple(windows)
    )


def test_steady_run_has_no_drift() -> None:
    result = make_result([5.0] * 60)
    assert result.settled_index is not None
    assert result.settled_index < 30
    assert result.drift is not None
    assert result.drift.verdict == "steady"
    assert result.steady_percentile_ms(50) == pytest.approx(5.0, rel=0.01)
    assert result.processor_events == []


def test_steady_state_excludes_cold_start() -> None:
    result = make_result([9.0, 8.0, 7.0, 6.0] + [5.0] * 56)
    assert result.settled_index is not None
    assert 3 <= result.settled_index <= 12
    assert result.steady_percentile_ms(50) == pytest.approx(5.0, rel=0.01)


def test_throttling_is_reported_with_reasons() -> None:
    hot = make_result(
        [5.0] * 20 + [8.0] * 40,
        frequency_khz=[1_500_000] * 20 + [1_000_000] * 40,
        temperature_c=[50] * 10 + [82] * 50,
        throttles=[3] * 20 + [7] * 40,
    )
    assert hot.drift is not None
    assert hot.drift.verdict == "slower over time"
    assert hot.drift.ratio == pytest.approx(1.6, rel=0.02)
    assert hot.settled_index is not None
    assert 18 <= hot.settled_index <= 22
    assert hot.steady_percentile_ms(50) == pytest.approx(8.0, rel=0.01)
    text = "; ".join(hot.processor_events)
    for event in ("throttled 4 times", "1.50 to 1.00 GHz", "50 to 82 °C"):
        assert event in text


def test_growing_latency_never_settles() -> None:
    assert make_result([5.0 + 0.1 * second for second in range(60)]).settled_index is None


def test_drift_verdict_is_steady_within_noise() -> None:
    generator = random.Random(1)
    noise = [5.0 * generator.uniform(0.8, 1.2) for _ in range(120)]
    drift = make_result(noise).drift
    assert drift is not None
    assert drift.verdict == "steady"
    assert drift.low < 1 < drift.high


def test_memory_growth_excludes_first_quarter() -> None:
    result = make_result([5.0] * 8, memory_bytes=[100, 400, 500, 500, 500, 510, 520, 530])
    assert result.memory_growth_bytes == 30
    assert make_result([5.0] * 8).memory_growth_bytes is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(1, 10**9), min_size=1, max_size=5), min_size=1, max_size=40))
def test_result_round_trips_through_json(latencies: list[list[int]]) -> None:
    windows = tuple(
        LatencyWindow(float(second), tuple(values)) for second, values in enumerate(latencies)
    )
    result = SustainedResult("row", 10.0, windows)
    content = json.loads(json.dumps(to_json(result), allow_nan=False))
    assert parse_as(SustainedResult, content) == result
    if result.drift is not None:
        assert result.drift.low <= result.drift.ratio <= result.drift.high


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1, 1e3), min_size=4, max_size=40))
def test_mser_cut_minimizes_squared_error(values: list[float]) -> None:
    def squared_error(rest: list[float]) -> float:
        mean = sum(rest) / len(rest)
        return sum((value - mean) ** 2 for value in rest) / len(rest) ** 2

    cut = _find_mser_cut(values)
    best = min(squared_error(values[start:]) for start in range(len(values) // 2 + 1))
    assert squared_error(values[cut:]) == pytest.approx(best, rel=1e-6, abs=1e-6)
