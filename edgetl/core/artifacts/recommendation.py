"""Which of the measured configurations to take, and the session options that go with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from edgetl.core.artifacts.bench_rows import BenchRow, round_ratios
from edgetl.core.statistics import paired_speedup


@dataclass(frozen=True)
class RecommendedConfig:
    """One configuration."""

    row: str
    """Id of its row."""
    p50_ms: float
    images_per_second: float
    options: Mapping[str, Any]
    """What to give onnxruntime: the file, its providers, SessionOptions by their own names, and the batch."""
    as_fast: tuple[str, ...]
    """Rows that are not shown to be slower, but take more threads or a larger file."""


@dataclass(frozen=True)
class Recommendation:
    """The fastest that passed the gate."""

    latency: RecommendedConfig
    """Lowest p50 of one image (of the smallest batch measured)."""
    throughput: RecommendedConfig
    """Most images a second, whatever the batch."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in the result."""
        return asdict(self)


def recommend(rows: Sequence[BenchRow]) -> Recommendation | None:
    """Choose among the ONNX Runtime rows of the first scope whose gate was not closed; None where none was timed.

    Where the data do not tell two apart, the one with fewer threads is taken, then the smaller file: it leaves more to others.
    """
    able = [
        row
        for row in rows
        if row.rounds and row.runtime != "pytorch" and not row.has_failed_gate and row.rate is None
    ]
    able = [row for row in able if row.scope == able[0].scope]
    if not able:
        return None
    smallest = min(row.batch for row in able)
    single = [row for row in able if row.batch == smallest]
    return Recommendation(_choose_config(single), _choose_config(able))


def _choose_config(rows: Sequence[BenchRow]) -> RecommendedConfig:
    best = min(rows, key=_compute_ns_per_image)
    alike = [row for row in rows if row is best or _is_not_slower(row, best)]
    chosen = min(alike, key=lambda row: (row.threads, row.file_bytes, _compute_ns_per_image(row)))
    return RecommendedConfig(
        chosen.id,
        chosen.percentile_ms(50) or 0.0,
        chosen.images_per_second or 0.0,
        {
            "variant": chosen.variant.removesuffix(f"-{chosen.session.get('session_mode')}"),
            "providers": chosen.session.get("providers", [chosen.provider]),
            "intra_op_num_threads": chosen.threads,
            "inter_op_num_threads": 1,
            "graph_optimization_level": chosen.session.get("graph_optimization"),
            "batch": chosen.batch,
            **{
                name: chosen.session[name]
                for name in ("provider_options",)
                if name in chosen.session
            },
        },
        tuple(row.id for row in alike if row is not chosen),
    )


def _compute_ns_per_image(row: BenchRow) -> float:
    return median(row.round_medians_ns) / row.batch


def _is_not_slower(row: BenchRow, best: BenchRow) -> bool:
    ratios = [ratio * row.batch / best.batch for ratio in round_ratios(best, row)]
    return len(ratios) > 1 and paired_speedup(ratios).high >= 1
