"""Statistics on real latencies: eight interleaved rounds of PyTorch and ONNX Runtime.

They were recorded on a shared machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray

from edgetl.core.artifacts.bench_rows import BlockResult, ColdStart, round_ratios
from edgetl.core.statistics import estimate_location, median_interval, paired_speedup, percentile
from tests.core.artifacts.test_bench import row

RECORDED = json.loads((Path(__file__).parent / "recorded/latencies.json").read_text())
RUNTIMES = ("pytorch", "onnxruntime")


def recorded_row(runtime: str) -> Any:
    cold = ColdStart(0, 0, 0, None)
    blocks = [
        BlockResult(tuple(block["latencies_ns"]), cold, slices=tuple(block["slices"]))
        for block in RECORDED[runtime]
    ]
    return row(runtime, []).__class__(**{**vars(row(runtime, [])), "rounds": tuple(blocks)})


def all_latencies(runtime: str) -> NDArray[np.int64]:
    return np.array([latency for block in RECORDED[runtime] for latency in block["latencies_ns"]])


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("percent", [50, 90, 99])
def test_percentiles_match_scipy(runtime: str, percent: int) -> None:
    values = all_latencies(runtime)
    assert percentile(values.tolist(), percent) == pytest.approx(
        scipy.stats.scoreatpercentile(values, percent)
    )


def test_speedup_interval_inverts_scipy_wilcoxon() -> None:
    ratios = np.log(round_ratios(recorded_row("pytorch"), recorded_row("onnxruntime")))
    speedup = paired_speedup(np.exp(ratios).tolist())
    low, high = np.log(speedup.low), np.log(speedup.high)
    nudge = 1e-6 * (high - low)
    for inside in (low + nudge, np.log(speedup.ratio), high - nudge):
        assert scipy.stats.wilcoxon(ratios - inside, method="exact").pvalue >= 0.05
    for outside in (low - nudge, high + nudge):
        assert scipy.stats.wilcoxon(ratios - outside, method="exact").pvalue < 0.05
    # SciPy's t interval, an independent method, must be close.
    expected = scipy.stats.ttest_1samp(ratios, 0).confidence_interval(0.95)
    assert estimate_location(ratios.tolist()) == pytest.approx(
        (ratios.mean(), expected.low, expected.high), abs=(high - low)
    )


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_interval_accounts_for_autocorrelation(runtime: str) -> None:
    # Latencies are correlated, so a bootstrap of single latencies gives a far too narrow interval.
    values = np.log(all_latencies(runtime))
    autocorrelation = scipy.stats.pearsonr(values[:-1], values[1:]).statistic
    assert autocorrelation > 0.2
    low, high = median_interval([block.median_ns for block in recorded_row(runtime).rounds])
    naive = scipy.stats.bootstrap(
        (np.exp(values),), np.median, n_resamples=200, method="percentile", rng=0
    ).confidence_interval
    assert high - low > 2 * (naive.high - naive.low)
