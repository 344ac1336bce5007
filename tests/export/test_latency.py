from __future__ import annotations

import pytest

from edgetl.core.artifacts.bundle import LatencyRecord
from edgetl.export.latency import _complete_record
from tests.helpers.bench_results import bench_row

UNTIMED = LatencyRecord(None, 2, "a CPU", 6)


@pytest.mark.parametrize(("rounds", "has_speedup"), [(0, False), (1, False), (2, True), (6, True)])
def test_speedup_needs_two_rounds_of_both(rounds: int, has_speedup: bool) -> None:
    baseline = bench_row("onnxruntime", "fp32", 5.0, rounds=rounds)
    record = _complete_record(UNTIMED, bench_row("onnxruntime", "int8", 2.5), baseline)
    assert record.p50_ms == pytest.approx(2.5, rel=0.05)
    assert (record.speedup is not None) == has_speedup
