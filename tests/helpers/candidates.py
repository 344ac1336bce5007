"""Synthetic results of `edgetl candidates`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgetl.core.artifacts.bench_rows import BlockResult, ColdStart
from edgetl.core.artifacts.candidates import CandidateRow, CandidatesResult
from edgetl.core.artifacts.device import DeviceInfo
from edgetl.core.artifacts.noise import NoiseReport


def candidate(
    architecture: str,
    medians_ms: Sequence[float] = (),
    image_size: int = 224,
    top1: float | None = 70.0,
    **fields: Any,
) -> CandidateRow:
    """Return a candidate with one round per median latency."""
    rounds = tuple(
        BlockResult((round(value * 1e6),) * 100, ColdStart(1.0, 1.0, 1.0, None))
        for value in medians_ms
    )
    return CandidateRow(
        architecture,
        image_size,
        parameters=1_000_000,
        imagenet_top1=top1,
        file_bytes=4_000_000,
        rounds=rounds,
        **fields,
    )


def result_of(
    *rows: CandidateRow, budget_ms: float | None = None, reasons: tuple[str, ...] = ()
) -> CandidatesResult:
    """Return a result of the rows; `reasons` make it noisy."""
    return CandidatesResult(
        created="2026-01-01T00:00:00+00:00",
        edgetl="0",
        device=DeviceInfo(host="here"),
        noise=NoiseReport(reasons),
        protocol={},
        order=(),
        classes=10,
        latency_budget_ms=budget_ms,
        provider="cpu",
        threads=2,
        rows=rows,
        path=Path("bench/result.json"),
    )
