"""Results of `edgetl candidates`: latencies of architectures, timed before training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgetl.core.artifacts.bench_rows import BlockResult, RoundStatistics
from edgetl.core.artifacts.device import DeviceInfo
from edgetl.core.artifacts.noise import NoiseReport
from edgetl.core.artifacts.session import SessionRecord
from edgetl.core.errors import BenchError
from edgetl.core.files import SCHEMA, read_json
from edgetl.core.typed_json import (
    FieldError,
    JsonObject,
    computed,
    computed_as,
    in_json,
    parse_as,
    to_json,
)


@dataclass(frozen=True)
class CandidateParity:
    """Parity of an untrained file with PyTorch on identical tensors."""

    max_logit_difference: float
    tolerance: float


@dataclass(frozen=True)
class CandidateRow(RoundStatistics):
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
    parity: CandidateParity | None = field(
        default=None, metadata=in_json(key="check", none_is_empty=True)
    )
    session: SessionRecord = field(default_factory=SessionRecord)
    """Configuration of the runtime and its input; empty if it was not opened."""
    rounds: tuple[BlockResult, ...] = ()
    failed: str | None = None
    """Reason why it was not timed; None if it was."""

    @computed_as("id")
    def name(self) -> str:
        """Identifier, unique within a result."""
        return f"{self.architecture}-{self.image_size}"

    @computed
    def ci95_ms(self) -> tuple[float, float] | None:
        """95% interval of p50 over rounds, widened to contain `p50_ms`; None below two rounds."""
        if self.p50_ms is None or self.p50_interval_ms is None:
            return None
        low, high = self.p50_interval_ms
        return min(low, self.p50_ms), max(high, self.p50_ms)

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


@dataclass(frozen=True)
class CandidatesResult:
    """All requested candidates, each timed or with the reason why not."""

    created: str
    """Time of the measurement, UTC, ISO 8601."""
    edgetl: str
    """Version of edgetl that measured."""
    device: DeviceInfo
    noise: NoiseReport
    protocol: Mapping[str, int | float | str]
    order: tuple[tuple[str, ...], ...]
    """Order of the processes in each round."""
    classes: int
    latency_budget_ms: float | None
    provider: str
    threads: int
    rows: tuple[CandidateRow, ...]
    notes: tuple[str, ...] = ()
    interrupted: bool = False
    path: Path | None = field(default=None, metadata=in_json(stored=False))
    """The result file."""

    def __repr__(self) -> str:
        return (
            f"CandidatesResult({len(self.timed_rows)} of {len(self.rows)} candidates timed, "
            f"path={str(self.path)!r})"
        )

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

    def to_json(self) -> JsonObject:
        """Return the content of the result file."""
        rows = [{**to_json(row), "fits": self.fits_budget(row)} for row in self.rows]
        return {"schema": SCHEMA, "kind": "candidates", **to_json(self), "rows": rows}

    @classmethod
    def from_json(cls, content: Mapping[str, object]) -> CandidatesResult:
        """Parse the output of `to_json`; its statistics are ignored.

        Raises:
            FieldError: A field is missing, unknown or of the wrong type.
        """
        rows = parse_as(tuple[dict[str, object], ...], content.get("rows"), "rows")
        for row in rows:
            row.pop("fits", None)
        fields = {name: value for name, value in content.items() if name not in ("schema", "kind")}
        return parse_as(cls, {**fields, "rows": rows}, "the result")


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
        return replace(CandidatesResult.from_json(content), path=path)
    except FieldError as cause:
        raise BenchError(
            f"Result of candidates {path} is broken: {cause}. Measure again."
        ) from cause
