"""Recommendation of a measured configuration, with its session options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from edgetl.core.artifacts.bench_rows import BenchRow, round_ratios
from edgetl.core.config.export import MAX_ACCURACY_DROP
from edgetl.core.runtimes import ONNXRUNTIME
from edgetl.core.statistics import paired_speedup
from edgetl.core.typed_json import in_json

MIN_START_SPEEDUP = 1.1
"""Least gain for which a session mode is recommended that only shortens the start."""
_OPTIONAL = in_json(omit_default=True)


@dataclass(frozen=True)
class RecommendedOptions:
    """Runtime, what to run with it, and its options by its own names."""

    variant: str
    providers: tuple[str, ...]
    intra_op_num_threads: int
    inter_op_num_threads: int
    graph_optimization_level: str | None
    batch: int
    provider_options: Mapping[str, str] | None = field(default=None, metadata=_OPTIONAL)
    session_options: Mapping[str, str] | None = field(default=None, metadata=_OPTIONAL)
    """Entries of the session's configuration."""
    session_mode: str | None = field(default=None, metadata=_OPTIONAL)
    """edgetl's name for the provider's and the session's options; None is the default."""
    runtime: str = field(default=ONNXRUNTIME, metadata=_OPTIONAL)
    precision: str | None = field(default=None, metadata=_OPTIONAL)
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
    """Ids of rows not shown to be slower, but with more threads, a larger file, or session options
    that gain nothing."""


@dataclass(frozen=True)
class Recommendation:
    """The fastest configurations that passed the gate."""

    latency: RecommendedConfig
    """Configuration with the lowest p50 at the smallest batch measured."""
    throughput: RecommendedConfig
    """Configuration with the most images a second at any batch."""


def recommend(
    rows: Sequence[BenchRow], max_drop: float = MAX_ACCURACY_DROP
) -> Recommendation | None:
    """Recommend among the rows of the first scope that passed the gate, except PyTorch's.

    Rows that lost more than `max_drop` points of accuracy at the export are left out if others
    remain. If the data do not show a difference, fewer threads are preferred, then ONNX Runtime,
    then the smaller file, which leaves more resources to other programs, then the default session,
    or a session mode in which the same file is ready sooner. None if no such row was timed.
    """
    timed = [
        row
        for row in rows
        if row.rounds and row.runtime != "pytorch" and not row.has_failed_gate and row.rate is None
    ]
    if not timed:
        return None
    eligible = [row for row in timed if row.scope == timed[0].scope]
    accurate = [row for row in eligible if row.accuracy is None or row.accuracy.drop <= max_drop]
    eligible = accurate or eligible
    smallest_batch = min(row.batch for row in eligible)
    smallest_batch_rows = [row for row in eligible if row.batch == smallest_batch]
    return Recommendation(_choose_config(smallest_batch_rows), _choose_config(eligible))


def _choose_config(rows: Sequence[BenchRow]) -> RecommendedConfig:
    fastest = min(rows, key=_compute_ns_per_image)
    equivalent = [row for row in rows if row is fastest or _is_not_slower(row, fastest)]
    # Another runtime is worth its installation only if it is shown to be faster than ONNX Runtime.
    candidates = [row for row in equivalent if row.runtime in (ONNXRUNTIME, fastest.runtime)]
    best = min(
        candidates,
        key=lambda row: (
            row.threads,
            row.runtime != ONNXRUNTIME,
            row.file_bytes,
            row.session.session_mode is not None,
            _compute_ns_per_image(row),
        ),
    )
    best = _choose_session_mode(best, equivalent)
    session = best.session
    options = RecommendedOptions(
        variant=best.variant.removesuffix(f"-{session.session_mode}"),
        providers=session.providers or (best.provider,),
        intra_op_num_threads=best.threads,
        inter_op_num_threads=1,
        graph_optimization_level=session.graph_optimization,
        batch=best.batch,
        provider_options=session.provider_options,
        session_options=session.session_options,
        session_mode=session.session_mode,
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


def _choose_session_mode(best: BenchRow, equivalent: Sequence[BenchRow]) -> BenchRow:
    """Return the row of the same configuration that is ready soonest after its process starts."""
    configuration = (best.runtime, best.file_sha256, best.provider, best.threads, best.batch)
    ready_sooner = [
        row
        for row in equivalent
        if (row.runtime, row.file_sha256, row.provider, row.threads, row.batch) == configuration
        and _is_ready_sooner(row, best)
    ]
    return min(ready_sooner, key=lambda row: median(_ready_times_ms(row)), default=best)


def _is_ready_sooner(row: BenchRow, best: BenchRow) -> bool:
    pairs = zip(_ready_times_ms(best), _ready_times_ms(row), strict=False)
    ratios = [best_ms / row_ms for best_ms, row_ms in pairs]
    return len(ratios) > 1 and paired_speedup(ratios).low > MIN_START_SPEEDUP


def _ready_times_ms(row: BenchRow) -> list[float]:
    return [item.cold.session_ms + item.cold.first_inference_ms for item in row.rounds]


def _compute_ns_per_image(row: BenchRow) -> float:
    return median(row.round_medians_ns) / row.batch


def _is_not_slower(row: BenchRow, fastest: BenchRow) -> bool:
    ratios = [ratio * row.batch / fastest.batch for ratio in round_ratios(fastest, row)]
    return len(ratios) > 1 and paired_speedup(ratios).high >= 1
