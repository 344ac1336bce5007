"""What an experiment found: every run's figures as measured, and what follows from them, computed on reading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from edgetl.core.artifacts.experiment_runs import StrategyResult, StrategyRun
from edgetl.core.config.compare import EQUAL_TIME, STRATEGY_DESCRIPTIONS
from edgetl.core.errors import RunError
from edgetl.core.files import read_json, write_json
from edgetl.core.paired_tests import (
    SIGNIFICANCE_LEVEL,
    AccuracyDifference,
    apply_holm_correction,
    compute_accuracy_difference,
)
from edgetl.core.typed_json import FieldError, parse_as

_MAX_TIME_RATIO = 1.1
AccuracyVerdict = Literal["more accurate", "less accurate", "no difference shown"]


@dataclass(frozen=True)
class StrategyComparison:
    """Two rows on the same validation images."""

    first: str
    second: str
    difference: AccuracyDifference
    p: float
    """Corrected for the number of pairs."""

    @property
    def verdict(self) -> AccuracyVerdict:
        """What the first is, against the second."""
        if self.p >= SIGNIFICANCE_LEVEL:
            return "no difference shown"
        return "more accurate" if self.difference.value > 0 else "less accurate"


@dataclass(frozen=True)
class DeployedModel:
    """A network's exported file, timed on this device."""

    network: str
    run: str
    """The exported run."""
    file_bytes: int
    p50_ms: float | None
    ci95_ms: tuple[float, float] | None
    noisy: bool
    threads: int
    failed: str | None = None


@dataclass(frozen=True)
class ScreenedNetwork:
    """A network that was timed before any was trained."""

    network: str
    p50_ms: float | None
    ci95_ms: tuple[float, float] | None
    fits: bool | None
    """Within the budget; None where the measurement does not decide."""
    failed: str | None = None


@dataclass(frozen=True)
class Experiment:
    """compare.json."""

    created: str
    edgetl: str
    device: Mapping[str, Any]
    config: Mapping[str, Any]
    """What was asked for: `compare` and `recipe`."""
    classes: tuple[str, ...]
    data: Mapping[str, Any]
    """Fingerprint and counts of the images."""
    planned: tuple[str, ...]
    """Names of all runs of the plan."""
    runs: tuple[StrategyRun, ...]
    deployed_models: tuple[DeployedModel, ...] = ()
    screened_networks: tuple[ScreenedNetwork, ...] = ()
    """The networks timed before any was trained, where there was a latency budget."""
    folder: Path = field(default=Path(), compare=False)
    """Where it lies; not in the file."""

    @property
    def target_accuracy(self) -> float:
        """Validation accuracy whose time is told."""
        return float(self.config["compare"]["target_accuracy"])

    @property
    def unfinished_run_names(self) -> list[str]:
        """Runs of the plan that have not ended yet."""
        ended = {run.name for run in self.runs}
        return [name for name in self.planned if name not in ended]

    @property
    def failed_runs(self) -> list[StrategyRun]:
        """Runs that came to nothing."""
        return [run for run in self.runs if run.failed is not None]

    @cached_property
    def rows(self) -> list[StrategyResult]:
        """Rows with at least one run, network by network, strategies in the order of MEANINGS."""
        found: dict[str, list[StrategyRun]] = {}
        for run in self.runs:
            if run.failed is None:
                found.setdefault(run.row, []).append(run)
        rows = [
            StrategyResult(name, tuple(sorted(runs, key=lambda run: run.seed)))
            for name, runs in found.items()
        ]
        networks = list(dict.fromkeys(row.network for row in rows))
        strategies = list(STRATEGY_DESCRIPTIONS)
        return sorted(
            rows,
            key=lambda row: (networks.index(row.network), strategies.index(row.first_run.strategy)),
        )

    @property
    def networks(self) -> list[str]:
        """Architectures at their sizes, in the order of the rows."""
        return list(dict.fromkeys(row.network for row in self.rows))

    def select_rows(self, network: str) -> list[StrategyResult]:
        """The rows of one network."""
        return [row for row in self.rows if row.network == network]

    @cached_property
    def comparisons(self) -> list[StrategyComparison]:
        """Every two strategies of a network, and every two networks of a strategy; tested on the seeds that both have.

        What nobody asks is left out, for each test makes the others' p-values larger: scratch against less of scratch.
        """
        rows = self.rows
        chosen = [
            (one, other)
            for index, other in enumerate(rows)
            for one in rows[index + 1 :]
            if _is_meaningful_pair(one.first_run, other.first_run)
        ]
        found = [(one, other, _compare_rows(one, other)) for one, other in chosen]
        tested = [(one, other, seen) for one, other, seen in found if seen is not None]
        corrected = apply_holm_correction([seen.p for _, _, seen in tested])
        return [
            StrategyComparison(one.name, other.name, seen, p)
            for (one, other, seen), p in zip(tested, corrected, strict=True)
        ]

    def find_comparison(self, first: str, second: str) -> StrategyComparison | None:
        """The comparison of two rows, seen from the first; None where they were not compared."""
        for pair in self.comparisons:
            if (pair.first, pair.second) == (first, second):
                return pair
            if (pair.second, pair.first) == (first, second):
                seen = pair.difference
                return StrategyComparison(
                    first,
                    second,
                    AccuracyDifference(-seen.value, -seen.high, -seen.low, seen.p),
                    pair.p,
                )
        return None

    def recommend_strategy(self, network: str) -> StrategyResult | None:
        """Of the strategies that are not shown to be less accurate than the most accurate one, that with the least time.

        Times within a tenth of it are as good: then the most accurate. None where no strategy that could be asked for has ended.
        """
        rows = [row for row in self.select_rows(network) if row.first_run.strategy != EQUAL_TIME]
        if not rows:
            return None
        top = max(rows, key=lambda row: row.val_accuracy)
        as_good = [
            row
            for row in rows
            if row is top or _is_not_worse(self.find_comparison(row.name, top.name))
        ]
        least = min(row.seconds for row in as_good)
        return max(
            (row for row in as_good if row.seconds <= _MAX_TIME_RATIO * least),
            key=lambda row: row.val_accuracy,
        )

    def find_deployed_model(self, network: str) -> DeployedModel | None:
        """The network's file and latency; None where it was not exported."""
        return next((one for one in self.deployed_models if one.network == network), None)

    def to_json(self) -> dict[str, Any]:
        """What compare.json holds; rows, pairs and recommendations are for its readers and are computed again on reading."""
        return {
            "kind": "compare",
            **{
                name: getattr(self, name)
                for name in ("created", "edgetl", "device", "config", "classes", "data", "planned")
            },
            "unfinished": self.unfinished_run_names,
            "rows": [self._row_to_json(row) for row in self.rows],
            "pairs": [{**asdict(pair), "verdict": pair.verdict} for pair in self.comparisons],
            "recommended": {
                network: row.name
                for network in self.networks
                if (row := self.recommend_strategy(network))
            },
            "deployed": [asdict(one) for one in self.deployed_models],
            "candidates": [asdict(one) for one in self.screened_networks],
            "runs": [asdict(run) for run in self.runs],
        }

    def write(self, path: Path) -> None:
        """Write compare.json."""
        write_json(path, self.to_json())

    def _row_to_json(self, row: StrategyResult) -> dict[str, Any]:
        figures = ("train_accuracy", "val_accuracy", "val_range", "ci95", "gap", "seconds")
        return {
            "id": row.name,
            "strategy": row.first_run.strategy,
            "network": row.network,
            **{name: getattr(row, name) for name in figures},
            "seconds_to_target": row.seconds_to_accuracy(self.target_accuracy),
            "runs": [run.name for run in row.runs],
        }


def read_experiment(path: Path) -> Experiment:
    """Read compare.json.

    Raises:
        RunError: missing, broken, or no experiment.
    """
    content = read_json(path, RunError, "The experiment")
    if content.get("kind") != "compare":
        raise RunError(
            f"{path} is no experiment but {content.get('kind')!r}. Give the folder that `edgetl compare` wrote."
        )
    try:
        stored = parse_as(_StoredExperiment, content, "compare.json", extra="ignore")
        for run in stored.runs:
            _check_run(run, len(stored.classes))
        if stored.candidates and stored.config.compare.latency_budget_ms is None:
            raise FieldError("compare.json has candidates and no latency_budget_ms")
    except FieldError as cause:
        raise RunError(
            f"{path} is broken: {cause}. `edgetl compare` with the same options writes it anew."
        ) from cause
    return Experiment(
        created=stored.created,
        edgetl=stored.edgetl,
        device=stored.device,
        # As it was written: the fields that are read by type, and those that are shown as they are.
        config=content["config"],
        classes=stored.classes,
        data=content["data"],
        planned=stored.planned,
        runs=stored.runs,
        deployed_models=stored.deployed,
        screened_networks=stored.candidates,
        folder=path.parent,
    )


@dataclass(frozen=True)
class _CompareSection:
    target_accuracy: float
    seeds: int
    epochs: int | None
    budget_s: float | None
    latency_budget_ms: float | None = None


@dataclass(frozen=True)
class _RecipeSection:
    preset: Any
    weights: Any


@dataclass(frozen=True)
class _ConfigSection:
    compare: _CompareSection
    recipe: _RecipeSection


@dataclass(frozen=True)
class _DataSection:
    folder: str = ""
    fingerprint: str = ""
    counts: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class _StoredExperiment:
    """compare.json, as far as it is not computed again."""

    created: str
    edgetl: str
    device: dict[str, Any]
    config: _ConfigSection
    classes: tuple[str, ...]
    data: _DataSection
    planned: tuple[str, ...]
    runs: tuple[StrategyRun, ...]
    deployed: tuple[DeployedModel, ...]
    candidates: tuple[ScreenedNetwork, ...] = ()


def _check_run(run: StrategyRun, classes: int) -> None:
    if run.strategy not in STRATEGY_DESCRIPTIONS:
        raise FieldError(f"{run.name} has an unknown strategy {run.strategy!r}")
    if run.failed is not None:
        return
    if not run.correct or not set(run.correct) <= {"0", "1"} or not run.epochs or run.seconds <= 0:
        raise FieldError(f"{run.name} has ended and has no answers, no epochs or no time")
    if len(run.confusion) != classes or any(
        len(counts) != classes or min(counts) < 0 for counts in run.confusion
    ):
        raise FieldError(f"{run.name} has no confusion matrix of {classes} x {classes} classes")


def _compare_rows(first: StrategyResult, second: StrategyResult) -> AccuracyDifference | None:
    """On the seeds that both have; None where they have none in common, or their images differ."""
    others: dict[int, StrategyRun] = {run.seed: run for run in second.runs}
    both: Sequence[tuple[StrategyRun, StrategyRun]] = [
        (run, others[run.seed]) for run in first.runs if run.seed in others
    ]
    if not both or len({len(run.correct_mask) for pair in both for run in pair}) > 1:
        return None
    return compute_accuracy_difference(
        [one.correct_mask for one, _ in both], [other.correct_mask for _, other in both]
    )


def _is_meaningful_pair(one: StrategyRun, other: StrategyRun) -> bool:
    if (one.architecture, one.image_size) == (other.architecture, other.image_size):
        return {one.strategy, other.strategy} != {"scratch", EQUAL_TIME}
    return one.strategy == other.strategy != EQUAL_TIME


def _is_not_worse(pair: StrategyComparison | None) -> bool:
    return pair is not None and pair.verdict != "less accurate"
