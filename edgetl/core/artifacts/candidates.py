"""Architectures that could be trained, timed before any of them is: what is asked for, and what was found."""

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
    """One architecture at one image size: its file, and every latency measured of it."""

    architecture: str
    image_size: int
    """Side of the network's input, pixels."""
    parameters: int | None = None
    """With the new head."""
    imagenet_top1: float | None = None
    """Percent, of torchvision's default weights at their own size, as torchvision states it: how capable, not how good on other images."""
    file_bytes: int | None = None
    file_sha256: str | None = None
    parity: Mapping[str, Any] = field(default_factory=dict)
    """The file against PyTorch on identical tensors: {"max_logit_difference", "tolerance"}."""
    session: Mapping[str, Any] = field(default_factory=dict)
    """How the runtime was configured, and what it was given."""
    rounds: tuple[BlockResult, ...] = ()
    failed: str | None = None
    """Why it was not timed; None where it was."""

    @property
    def name(self) -> str:
        """Unique within a result."""
        return f"{self.architecture}-{self.image_size}"

    @cached_property
    def latencies_ns(self) -> list[int]:
        """All rounds together; none is left out."""
        return [latency for block in self.rounds for latency in block.latencies_ns]

    @cached_property
    def p50_ms(self) -> float | None:
        """Over all rounds; None where nothing was timed."""
        return self._percentile_ms(50)

    @cached_property
    def p90_ms(self) -> float | None:
        """Over all rounds; None where there are too few runs to support it."""
        return self._percentile_ms(90)

    @cached_property
    def ci95_ms(self) -> tuple[float, float] | None:
        """95% interval of p50 over rounds, widened to hold `p50_ms`; None for fewer than two rounds."""
        if self.p50_ms is None or len(self.rounds) < 2:
            return None
        low, high = median_interval([block.median_ns for block in self.rounds])
        return min(low / 1e6, self.p50_ms), max(high / 1e6, self.p50_ms)

    @property
    def images_per_second(self) -> float | None:
        """Images divided by the time spent on them."""
        return (
            len(self.latencies_ns) / (sum(self.latencies_ns) / 1e9) if self.latencies_ns else None
        )

    @property
    def spread(self) -> float:
        """(largest - smallest) / median of the rounds' medians; 0 without rounds."""
        return relative_spread([block.median_ns for block in self.rounds])

    @property
    def steady(self) -> bool:
        """Whether every round's warm-up reached steadiness."""
        return all(block.steady for block in self.rounds)

    def fits_budget(self, budget_ms: float | None, noisy: bool = False) -> bool | None:
        """Whether the p50 is within the budget; None where the data do not decide, or there is nothing to decide.

        Args:
            budget_ms: largest p50.
            noisy: the device was not quiet; then the interval, widened on both sides by the rounds' spread, must still exclude the budget.
        """
        if budget_ms is None or self.ci95_ms is None:
            return None
        widened = 1 + (self.spread if noisy else 0.0)
        low, high = self.ci95_ms[0] / widened, self.ci95_ms[1] * widened
        return True if high < budget_ms else False if low > budget_ms else None

    def _percentile_ms(self, percent: int) -> float | None:
        value = percentile(self.latencies_ns, percent)
        return None if value is None else value / 1e6


@dataclass(frozen=True)
class CandidatesResult:
    """Every candidate that was asked for, timed or with the reason why not."""

    created: str
    """UTC, ISO 8601."""
    edgetl: str
    """The version that measured."""
    device: Mapping[str, Any]
    noise: Noise
    protocol: Mapping[str, Any]
    order: tuple[tuple[str, ...], ...]
    """For each round, in which order the processes ran."""
    classes: int
    latency_budget_ms: float | None
    provider: str
    threads: int
    rows: tuple[CandidateRow, ...]
    notes: tuple[str, ...] = ()
    interrupted: bool = False
    path: Path | None = None
    """The file it lies in."""

    def fits_budget(self, row: CandidateRow) -> bool | None:
        """Whether a row is within the budget; None where the data do not decide, or there is no budget."""
        return row.fits_budget(self.latency_budget_ms, self.noise.is_noisy)

    @property
    def timed_rows(self) -> list[CandidateRow]:
        """Rows with latencies, fastest first."""
        return sorted(
            (row for row in self.rows if row.p50_ms is not None), key=lambda row: row.p50_ms or 0.0
        )

    @property
    def fitting_rows(self) -> list[CandidateRow]:
        """Rows within the budget, fastest first; without a budget all that were timed."""
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
        """Of those that fit, each that no other one equals or beats in both ImageNet top-1 and image size; highest top-1 first.

        torchvision states an accuracy at one size only: how a strong network at a small size compares with a weak one at a large size
        is not known before training, so both are named.
        """
        ranked = sorted(
            self.fitting_rows,
            key=lambda row: (row.imagenet_top1 or 0.0, row.image_size, -(row.p50_ms or 0.0)),
            reverse=True,
        )
        chosen: list[CandidateRow] = []
        for row in ranked:
            if all(row.image_size > better.image_size for better in chosen):
                chosen.append(row)
        return chosen

    def to_json(self) -> dict[str, Any]:
        """What the result file holds."""
        return {
            "schema": SCHEMA,
            "kind": "candidates",
            **{name: getattr(self, name) for name in _RESULT_FIELDS},
            "device": dict(self.device),
            "noise": self.noise.to_json(),
            "protocol": dict(self.protocol),
            "order": [list(round_) for round_ in self.order],
            "notes": list(self.notes),
            "rows": [self._row_to_json(row) for row in self.rows],
        }

    def _row_to_json(self, row: CandidateRow) -> dict[str, Any]:
        figures = ("p50_ms", "p90_ms", "images_per_second", "steady")
        return {
            "id": row.name,
            **{name: getattr(row, name) for name in (*_ROW_FIELDS, *figures)},
            "ci95_ms": None if row.ci95_ms is None else list(row.ci95_ms),
            "fits": self.fits_budget(row),
            "check": dict(row.parity),
            "session": dict(row.session),
            "rounds": [asdict(block) for block in row.rounds],
        }


def read_candidates(path: Path) -> CandidatesResult:
    """A result file of architectures, its statistics computed from the raw latencies.

    Raises:
        BenchError: missing, not a result of candidates, or broken.
    """
    content = read_json(path, BenchError, "The result of candidates")
    if content.get("kind") != "candidates":
        raise BenchError(
            f"{path} is no result of candidates but of kind {content.get('kind')!r}. Give one that `edgetl bench` made of architectures."
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
            f"{path} is a broken result of candidates: {cause!r}. Measure again."
        ) from cause
