"""A bundle's variants timed against each other on this machine, by the benchmark's own protocol."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgetl.core.artifacts.bench_rows import BenchRow, round_ratios
from edgetl.core.config.bench import BenchConfig
from edgetl.core.statistics import paired_speedup, sign_test
from edgetl.device.bench.gate import run_gates
from edgetl.device.bench.inputs import prepare_bench_inputs
from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.bench.rounds import RoundRunner
from edgetl.device.bench.target import find_target
from edgetl.device.hardware.cpu import available_cores
from edgetl.device.hardware.info import collect_device_info

_ROUNDS = 6
"""The fewest in which a variant that wins every one is no accident at 5%."""
_SIGNIFICANCE_LEVEL = 0.05


def measure_variant_latencies(
    bundle: Path, notify: Callable[[str, int, int], None], protocol: BenchProtocol | None = None
) -> dict[str, dict[str, Any]]:
    """Variant name to its `latency` in bundle.json: p50, and speed-up over fp32 with its 95% interval.

    Scope `model`, one image, all cores available, every block in a process of its own, rounds in random order.
    """
    threads = available_cores()
    target = find_target(BenchConfig(bundle, scopes=("model",)), (threads,))
    candidates = [candidate for candidate in target.cases if candidate.runtime == "onnxruntime"]
    assert target.bundle is not None
    with tempfile.TemporaryDirectory(prefix="edgetl-latency-") as name:
        folder = Path(name)
        pictures = prepare_bench_inputs(
            target.bundle, {candidate.input_spec for candidate in candidates}, folder
        )
        contenders, left_out = run_gates(
            candidates,
            pictures,
            protocol or BenchProtocol(),
            folder,
            lambda text: notify("Timing variants", 0, 0),
        )
        able = [contender for contender in contenders if contender.passed]
        rounds = RoundRunner()
        rounds.measure(
            able,
            _ROUNDS,
            0,
            folder,
            lambda done, total, text: notify("Timing variants", done, total),
        )
    rows = {
        contender.case.variant: replace(
            contender.rows[0], rounds=tuple(rounds.rounds_by_row.get(contender.rows[0].id, ()))
        )
        for contender in contenders
    }
    about = {
        "scope": "model",
        "batch": 1,
        "threads": threads,
        "provider": "cpu",
        "cpu": collect_device_info().get("cpu"),
        "rounds": _ROUNDS,
    }
    found = {
        variant: {**about, **_latency_record(row, rows.get("fp32"))}
        for variant, row in rows.items()
    }
    gone = {
        candidate.variant: "; ".join(left_out)
        for candidate in candidates
        if candidate.variant not in rows
    }
    died = {
        contender.case.variant: rounds.failures.get(contender.case.name) for contender in contenders
    }
    gone |= {variant: str(error) for variant, error in died.items() if error is not None}
    return found | {
        variant: {**about, "p50_ms": None, "reason": reason} for variant, reason in gone.items()
    }


def _latency_record(row: BenchRow, float32: BenchRow | None) -> dict[str, Any]:
    if not row.rounds:
        return {
            "p50_ms": None,
            "reason": row.gate.get("reason", "its process ended before anything was measured"),
        }
    found: dict[str, Any] = {"p50_ms": row.percentile_ms(50)}
    if float32 is None or row is float32 or not float32.rounds:
        return found
    ratios = round_ratios(float32, row)
    speedup, wins = paired_speedup(ratios), sum(ratio > 1 for ratio in ratios)
    # On a shared machine an interval from six rounds is too sure of itself: the order within the rounds has to agree.
    shown = sign_test(ratios) < _SIGNIFICANCE_LEVEL
    decided = (
        "faster"
        if shown and speedup.low > 1
        else "slower"
        if shown and speedup.high < 1
        else "inconclusive"
    )
    return {
        **found,
        "speedup": speedup.ratio,
        "ci95": [speedup.low, speedup.high],
        "rounds_won": wins,
        "verdict": decided,
    }
