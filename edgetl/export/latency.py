"""Latency of a bundle's variants on this machine, measured with the benchmark's protocol."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from edgetl.core.artifacts.bench_rows import BenchRow, round_ratios
from edgetl.core.artifacts.bundle import LatencyRecord, SpeedVerdict
from edgetl.core.config.bench import BenchConfig
from edgetl.core.progress import ProgressCallback
from edgetl.core.statistics import paired_speedup, sign_test
from edgetl.device.bench.correctness_gate import run_gates
from edgetl.device.bench.inputs import prepare_bench_inputs
from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.bench.rounds import RoundRunner
from edgetl.device.bench.target import find_target
from edgetl.device.hardware.cpu import available_cores
from edgetl.device.hardware.info import collect_device_info

_ROUNDS = 6
"""Smallest number of rounds in which winning all of them is significant at 5%."""
_SIGNIFICANCE_LEVEL = 0.05


def measure_variant_latencies(
    bundle: Path, notify: ProgressCallback, protocol: BenchProtocol | None = None
) -> dict[str, LatencyRecord]:
    """Measure the variants of a bundle; return the latency of each variant by name.

    A record has the p50 and the speed-up over fp32 with its 95% interval. The scope is `model` with
    one image and all available cores; every block runs in a process of its own, and rounds are in
    random order.

    Args:
        bundle: directory with all variants and a manifest.
        notify: called before each block.
        protocol: lengths of blocks and warm-up; None for the default protocol.
    """
    threads = available_cores()
    target = find_target(BenchConfig(bundle, scopes=("model",), torch_modes=()), (threads,))
    assert target.bundle is not None
    with tempfile.TemporaryDirectory(prefix="edgetl-latency-") as name:
        folder = Path(name)
        gated_cases, omissions = run_gates(
            target.cases,
            prepare_bench_inputs(target.bundle, target.input_specs, folder),
            protocol or BenchProtocol(),
            folder,
            lambda step, done, total: notify("Timing variants", 0, 0),
        )
        runner = RoundRunner()
        runner.measure(
            [gated for gated in gated_cases if gated.passed],
            _ROUNDS,
            0,
            folder,
            lambda step, done, total: notify("Timing variants", done, total),
        )
    rows = {}
    failures = {}
    for gated in gated_cases:
        rows[gated.case.variant] = runner.attach_rounds(gated.rows[0])
        if (error := runner.failures.get(gated.case.name)) is not None:
            failures[gated.case.variant] = str(error)
    for case in target.cases:
        if case.variant not in rows:
            failures[case.variant] = "; ".join(omissions)
    untimed = LatencyRecord(None, threads, collect_device_info().cpu, _ROUNDS)
    records = {
        variant: _complete_record(untimed, row, rows.get("fp32")) for variant, row in rows.items()
    }
    for variant, reason in failures.items():
        records[variant] = replace(untimed, reason=reason)
    return records


def _complete_record(
    untimed: LatencyRecord, row: BenchRow, fp32_row: BenchRow | None
) -> LatencyRecord:
    if not row.rounds:
        reason = row.gate.reason or "its process ended before the first measurement"
        return replace(untimed, reason=reason)
    record = replace(untimed, p50_ms=row.percentile_ms(50))
    if fp32_row is None or row is fp32_row:
        return record
    ratios = round_ratios(fp32_row, row)
    if len(ratios) < 2:  # a process ended early, and the interval needs two rounds
        return record
    speedup = paired_speedup(ratios)
    # On a shared machine the interval from six rounds is too narrow, so the sign test over the
    # rounds must agree.
    is_significant = sign_test(ratios) < _SIGNIFICANCE_LEVEL
    verdict: SpeedVerdict = "inconclusive"
    if is_significant and speedup.low > 1:
        verdict = "faster"
    elif is_significant and speedup.high < 1:
        verdict = "slower"
    return replace(
        record,
        speedup=speedup.ratio,
        interval=(speedup.low, speedup.high),
        rounds_won=sum(ratio > 1 for ratio in ratios),
        verdict=verdict,
    )
