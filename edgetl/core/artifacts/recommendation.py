"""Recommendation of a measured configuration, with its session options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from edgetl.core.artifacts.bench_rows import BenchRow, round_ratios
from edgetl.core.runtimes import ONNXRUNTIME
from edgetl.core.statistics import paired_speedup
from edgetl.core.typed_json import in_json

_MAX_DROP = 1.0
"""Default limit of the export for the loss of top-1 accuracy, in percentage points."""


@dataclass(frozen=True)
class RecommendedOptions:
    """Runtime, what to run with it, and its options by its own names."""

    variant: str
    providers: tuple[str, ...]
    intra_op_num_threads: int
    inter_op_num_threads: int
    graph_optimization_level: str | None
    batch: int
    provider_options: Mapping[str, str] | None = field(
        default=None, metadata=in_json(omit_default=True)
    )
    runtime: str = field(default=ONNXRUNTIME, metadata=in_json(omit_default=True))
    precision: str | None = field(default=None, metadata=in_json(omit_default=True))
    """Precision that ran, with another runtime than ONNX Runtime."""


@dataclass(frozen=True)
class RecommendedConfig:
    """One recommended configuration."""

    row: str
    """Id of its row."""
    p50_ms: float
    images_per_second: float
    options: RecommendedOptions
    as_fast: tuple[str, ...]
    """Ids of rows not shown to be slower, but with more threads or a larger file."""


@dataclass(frozen=True)
class Recommendation:
    """The fastest configurations that passed the gate."""

    latency: RecommendedConfig
    """Configuration with the lowest p50 at the smallest batch measured."""
    throughput: RecommendedConfig
    """Configuration with the most images a second at any batch."""


def recommend(rows: Sequence[BenchRow]) -> Recommendation | None:
    """Recommend among the rows of the first scope that passed the gate, except PyTorch's.

    Rows that lost more than a point of accuracy at the export are left out if others remain.
    If the data do not show a difference, fewer threads are preferred, then the smaller file, which
    leaves more resources to other programs. None if no such row was timed.
    """
    timed = [
        row
        for row in rows
        if row.rounds and row.runtime != "pytorch" and not row.has_failed_gate and row.rate is None
    ]
    if not timed:
        return None
    eligible = [row for row in timed if row.scope == timed[0].scope]
    eligible = [row for row in eligible if _is_accurate(row)] or eligible
    smallest_batch = min(row.batch for row in eligible)
    smallest_batch_rows = [row for row in eligible if row.batch == smallest_batch]
    return Recommendation(_choose_config(smallest_batch_rows), _choose_config(eligible))


def _is_accurate(row: BenchRow) -> bool:
    return row.accuracy is None or row.accuracy.drop <= _MAX_DROP


def _choose_config(rows: Sequence[BenchRow]) -> RecommendedConfig:
    fastest = min(rows, key=_compute_ns_per_image)
    equivalent = [row for row in rows if row is fastest or _is_not_slower(row, fastest)]
    best = min(
        equivalent, key=lambda row: (row.threads, row.file_bytes, _compute_ns_per_image(row))
    )
    session = best.session
    options = RecommendedOptions(
        variant=best.variant.removesuffix(f"-{session.session_mode}"),
        providers=session.providers or (best.provider,),
        intra_op_num_threads=best.threads,
        inter_op_num_threads=1,
        graph_optimization_level=session.graph_optimization,
        batch=best.batch,
        provider_options=session.provider_options,
        runtime=best.runtime,
        precision=None if best.runtime == ONNXRUNTIME else session.precision,
    )
    return RecommendedConfig(
        row=best.id,
        p50_ms=best.p50_ms or 0.0,
        images_per_second=best.images_per_second or 0.0,
        options=options,
        as_fast=tuple(row.id for row in equivalent if row is not best),
    )


def _compute_ns_per_image(row: BenchRow) -> float:
    return median(row.round_medians_ns) / row.batch


def _is_not_slower(row: BenchRow, fastest: BenchRow) -> bool:
    ratios = [ratio * row.batch / fastest.batch for ratio in round_ratios(fastest, row)]
    return len(ratios) > 1 and paired_speedup(ratios).high >= 1
