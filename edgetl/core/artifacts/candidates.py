"""Results of `edgetl candidates`: latencies of architectures, timed before training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from edgetl.core.artifacts.bench import Noise
from edgetl.core.artifacts.bench_rows import BlockResult, relative_spread
from edgetl.core.errors import BenchError
from edgetl.core.files import SCHEMA, read_json
from edgetl.core.statistics import median_interval, percentile

_RESULT_FIELDS = (
    "created",
    "edgetl",
    "classes",
    "latency_budget_ms",
    "provider",
    "threads",
    "interrupted",
)
_ROW_FIELDS = (
    "architecture",
    "image_size",
    "parameters",
    "imagenet_top1",
    "file_bytes",
    "file_sha256",
    "failed",
)


@dataclass(frozen=True)
class CandidateRow:
    """One architecture at one image size: its file and all its latencies."""

    architecture: str
    image_size: int
    """Side of the square input, pixels."""
    parameters: int | None = None
    """Number of parameters, including the new head."""
    imagenet_top1: float | None = None
    """ImageNet top-1 of torchvision's default weights at their own size, percent, by torchvision.

    It compares the capacity of architectures; it does not predict the accuracy on other images.
    """
    file_bytes: int | None = None
    file_sha256: str | None = None
    parity: Mapping[str, Any] = field(default_factory=dict)
    """Parity with PyTorch on identical tensors: {"max_logit_difference", "tolerance"}."""
    session: Mapping[str, Any] = field(default_factory=dict)
    """Configuration of the runtime and its input."""
    rounds: tuple[BlockResult, ...] = ()
    failed: str | None = None
    """Reason why it was not timed; None if it was."""

    @property
    def name(self) -> str:
        """Identifier, unique within a result."""
        return f"{self.architecture}-{self.image_size}"

    @cached_property
    def latencies_ns(self) -> list[int]:
        """Latencies of all rounds, without exception."""
        return [latency for block in self.rounds for latency in block.latencies_ns]

    @cached_property
    def p50_ms(self) -> float | None:
        """Median latency over all rounds; None if not timed."""
        return self._percentile_ms(50)

    @cached_property
    def p90_ms(self) -> float | None:
        """90th percentile over all rounds; None if there are too few latencies for it."""
        return self._percentile_ms(90)

    @cached_property
    def ci95_ms(self) -> tuple[float, float] | None:
        """95% interval of p50 over rounds, widened to contain `p50_ms`; None below two rounds."""
        if self.p50_ms is None or len(self.rounds) < 2:
            return None
        low, high = median_interval([block.median_ns for block in self.rounds])
        return min(low / 1e6, self.p50_ms), max(high / 1e6, self.p50_ms)

    @property
    def images_per_second(self) -> float | None:
        """Throughput: images divided by the sum of the latencies; None if not timed."""
        if not self.latencies_ns:
            return None
        return len(self.latencies_ns) / (sum(self.latencies_ns) / 1e9)

    @property
    def spread(self) -> float:
        """(largest - smallest) / median of the rounds' medians; 0 without rounds."""
        return relative_spread([block.median_ns for block in self.rounds])

    @property
    def steady(self) -> bool:
        """Whether the warm-up converged in every round."""
        return all(block.steady for block in self.rounds)

    def fits_budget(self, budget_ms: float | None, noisy: bool = False) -> bool | None:
        """Return whether the p50 is within the budget; None if inconclusive or not applicable.

        Args:
            budget_ms: Largest allowed p50; None is no budget.
            noisy: The device was not quiet. The interval is then widened on both sides by the
                spread of the rounds before it is compared with the budget.
        """
        if budget_ms is None or self.ci95_ms is None:
            return None
        margin = 1 + (self.spread if noisy else 0.0)
        low, high = self.ci95_ms[0] / margin, self.ci95_ms[1] * margin
        if high < budget_ms:
            return True
        return False if low > budget_ms else None

    def _percentile_ms(self, percent: int) -> float | None:
        value = percentile(self.latencies_ns, percent)
        return None if value is None else value / 1e6


@dataclass(frozen=True)
class CandidatesResult:
    """All requested candidates, each timed or with the reason why not."""

    created: str
    """Time of the measurement, UTC, ISO 8601."""
    edgetl: str
    """Version of edgetl that measured."""
    device: Mapping[str, Any]
    noise: Noise
    protocol: Mapping[str, Any]
    order: tuple[tuple[str, ...], ...]
    """Order of the processes in each round."""
    classes: int
    latency_budget_ms: float | None
    provider: str
    threads: int
    rows: tuple[CandidateRow, ...]
    notes: tuple[str, ...] = ()
    interrupted: bool = False
    path: Path | None = None
    """The result file."""

    def fits_budget(self, row: CandidateRow) -> bool | None:
        """Return whether a row is within the budget; None if inconclusive or without a budget."""
        return row.fits_budget(self.latency_budget_ms, self.noise.is_noisy)

    @property
    def timed_rows(self) -> list[CandidateRow]:
        """Timed rows, fastest first."""
        return sorted(
            (row for row in self.rows if row.p50_ms is not None), key=lambda row: row.p50_ms or 0.0
        )

    @property
    def fitting_rows(self) -> list[CandidateRow]:
        """Rows within the budget, fastest first; all timed rows if there is no budget."""
        return [
            row
            for row in self.timed_rows
            if self.latency_budget_ms is None or self.fits_budget(row)
        ]

    @property
    def undecided_rows(self) -> list[CandidateRow]:
        """Rows whose interval contains the budget."""
        return [
            row
            for row in self.timed_rows
            if self.latency_budget_ms is not None and self.fits_budget(row) is None
        ]

    @property
    def pareto_front(self) -> list[CandidateRow]:
        """Fitting rows on the Pareto front of ImageNet top-1 and image size, highest top-1 first.

        torchvision states an accuracy at one size only. How a stronger architecture at a small size
        compares with a weaker one at a large size is unknown before training, so both are listed.
        """
        ranked = sorted(
            self.fitting_rows,
            key=lambda row: (row.imagenet_top1 or 0.0, row.image_size, -(row.p50_ms or 0.0)),
            reverse=True,
        )
        front: list[CandidateRow] = []
        for row in ranked:
            if all(row.image_size > better.image_size for better in front):
                front.append(row)
        return front

    def to_json(self) -> dict[str, Any]:
        """Return the content of the result file."""
        return {
            "schema": SCHEMA,
            "kind": "candidates",
            **{name: getattr(self, name) for name in _RESULT_FIELDS},
            "device": dict(self.device),
            "noise": self.noise.to_json(),
            "protocol": dict(self.protocol),
            "order": [list(names) for names in self.order],
            "notes": list(self.notes),
            "rows": [self._row_to_json(row) for row in self.rows],
        }

    def _row_to_json(self, row: CandidateRow) -> dict[str, Any]:
        statistics = ("p50_ms", "p90_ms", "images_per_second", "steady")
        return {
            "id": row.name,
            **{name: getattr(row, name) for name in (*_ROW_FIELDS, *statistics)},
            "ci95_ms": None if row.ci95_ms is None else list(row.ci95_ms),
            "fits": self.fits_budget(row),
            "check": dict(row.parity),
            "session": dict(row.session),
            "rounds": [asdict(block) for block in row.rounds],
        }


def read_candidates(path: Path) -> CandidatesResult:
    """Read a result file of candidates; the statistics are computed from the raw latencies.

    Raises:
        BenchError: The file is missing, is not a result of candidates, or is broken.
    """
    content = read_json(path, BenchError, "The result of candidates")
    if content.get("kind") != "candidates":
        raise BenchError(
            f"{path} is not a result of candidates: its kind is {content.get('kind')!r}. "
            "Give a result of `edgetl candidates`."
        )
    try:
        return CandidatesResult(
            **{name: content[name] for name in _RESULT_FIELDS},
            device=dict(content["device"]),
            noise=Noise.from_json(content["noise"]),
            protocol=dict(content["protocol"]),
            order=tuple(tuple(names) for names in content["order"]),
            rows=tuple(
                CandidateRow(
                    **{name: row[name] for name in _ROW_FIELDS},
                    parity=dict(row["check"]),
                    session=dict(row["session"]),
                    rounds=tuple(BlockResult.from_json(block) for block in row["rounds"]),
                )
                for row in content["rows"]
            ),
            notes=tuple(content["notes"]),
            path=path,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as cause:
        raise BenchError(
            f"Result of candidates {path} is broken: {cause!r}. Measure again."
        ) from cause
