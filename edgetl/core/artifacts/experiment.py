"""Results of `edgetl compare`: the measured values of every run and the statistics over them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import astuple, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from edgetl.core.artifacts.device import DeviceInfo
from edgetl.core.artifacts.experiment_runs import StrategyResult, StrategyRun
from edgetl.core.artifacts.run_config import DatasetInfo
from edgetl.core.config.compare import EQUAL_TIME, STRATEGY_DESCRIPTIONS, CompareConfig
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.config.options import config_to_json
from edgetl.core.errors import RunError
from edgetl.core.files import read_json, write_json
from edgetl.core.paired_tests import (
    SIGNIFICANCE_LEVEL,
    AccuracyDifference,
    apply_holm_correction,
    compute_accuracy_difference,
)
from edgetl.core.typed_json import (
    FieldError,
    JsonObject,
    computed,
    computed_as,
    in_json,
    parse_as,
    to_json,
)

_MAX_TIME_RATIO = 1.1
AccuracyVerdict = Literal["more accurate", "less accurate", "no difference shown"]


@dataclass(frozen=True)
class StrategyComparison:
    """Accuracy of two rows on the same validation images."""

    first: str
    second: str
    difference: AccuracyDifference
    p: float
    """p-value, corrected for the number of pairs."""

    @computed
    def verdict(self) -> AccuracyVerdict:
        """Verdict on the first row relative to the second."""
        if self.p >= SIGNIFICANCE_LEVEL:
            return "no difference shown"
        return "more accurate" if self.difference.value > 0 else "less accurate"


@dataclass(frozen=True)
class DeployedModel:
    """Exported model of an architecture, timed on this device."""

    network: str
    run: str
    """Name of the exported run."""
    file_bytes: int
    p50_ms: float | None
    ci95_ms: tuple[float, float] | None
    noisy: bool
    threads: int
    failed: str | None = None


@dataclass(frozen=True)
class ScreenedNetwork:
    """Architecture that was timed before training."""

    network: str
    p50_ms: float | None
    ci95_ms: tuple[float, float] | None
    fits: bool | None
    """Whether it is within the latency budget; None if inconclusive."""
    failed: str | None = None


@dataclass(frozen=True)
class ExperimentData:
    """Images of an experiment; unknown until a run has finished, except for the folder."""

    fingerprint: str = field(default="", metadata=in_json(omit_default=True))
    counts: Mapping[str, Mapping[str, int]] = field(
        default_factory=dict, metadata=in_json(omit_default=True)
    )
    rejected: int | None = field(default=None, metadata=in_json(omit_default=True))
    warnings: tuple[str, ...] | None = field(default=None, metadata=in_json(omit_default=True))
    folder: str = ""
    """Name of the data folder."""

    @classmethod
    def of(cls, folder: str, data: DatasetInfo | None) -> ExperimentData:
        """Return the entry for a data folder, with the data of its runs if one has finished."""
        return cls(folder=folder) if data is None else cls(**vars(data), folder=folder)


@dataclass(frozen=True)
class ExperimentConfig:
    """Request of an experiment: the runs to train and the recipe that they share."""

    compare: CompareConfig
    """Its `output` is the folder that it was requested for, and is not in the file."""
    recipe: FinetuneConfig
    """Its `seed` and `output` differ between runs and are not in the file."""

    def to_json(self) -> JsonObject:
        """Return the sections `compare` and `recipe`."""
        return {
            "compare": _without(config_to_json(self.compare), ("output",)),
            "recipe": _without(self.recipe.to_json(), ("seed", "output")),
        }

    @classmethod
    def from_json(cls, content: Any) -> ExperimentConfig:
        """Parse the output of `to_json`; fields of other versions are ignored.

        Raises:
            FieldError: A section is missing, or a value has the wrong type.
            ConfigError: A value is out of range.
        """
        sections = parse_as(dict[str, dict[str, Any]], content, "config")
        for name in ("compare", "recipe"):
            if name not in sections:
                raise FieldError(f"config has no field {name!r}")
        compare = {"output": "", **sections["compare"]}
        return cls(
            parse_as(CompareConfig, compare, "compare", extra="ignore"),
            FinetuneConfig.from_json(sections["recipe"]),
        )


def _without(content: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name not in names}


@dataclass(frozen=True)
class ExperimentRow:
    """Summary of a row for other readers of compare.json; edgetl recomputes it."""

    id: str
    strategy: str
    network: str
    train_accuracy: float
    val_accuracy: float
    val_range: tuple[float, float]
    ci95: tuple[float, float]
    test_accuracy: float | None = field(
        default=None, kw_only=True, metadata=in_json(omit_default=True)
    )
    test_interval: tuple[float, float] | None = field(
        default=None, kw_only=True, metadata=in_json(key="test_ci95", omit_default=True)
    )
    gap: float
    seconds: float
    seconds_to_target: float | None
    """Median time to the target accuracy; None if it was not reached."""
    runs: tuple[str, ...]

    @classmethod
    def of(cls, row: StrategyResult, target_accuracy: float) -> ExperimentRow:
        """Return the summary of a row."""
        return cls(
            id=row.name,
            strategy=row.first_run.strategy,
            network=row.network,
            train_accuracy=row.train_accuracy,
            val_accuracy=row.val_accuracy,
            val_range=row.val_range,
            ci95=row.ci95,
            test_accuracy=row.test_accuracy,
            test_interval=row.test_interval,
            gap=row.gap,
            seconds=row.seconds,
            seconds_to_target=row.seconds_to_accuracy(target_accuracy),
            runs=tuple(run.name for run in row.runs),
        )


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Content of compare.json, the result of `edgetl compare`.

    It is accepted wherever the path of its folder is.
    """

    kind: Literal["compare"] = "compare"
    created: str
    edgetl: str
    device: DeviceInfo
    config: ExperimentConfig
    classes: tuple[str, ...]
    data: ExperimentData
    planned: tuple[str, ...]
    """Names of all planned runs."""
    deployed_models: tuple[DeployedModel, ...] = field(default=(), metadata=in_json(key="deployed"))
    screened_networks: tuple[ScreenedNetwork, ...] = field(
        default=(), metadata=in_json(key="candidates")
    )
    """Architectures timed before training, if there was a latency budget."""
    runs: tuple[StrategyRun, ...]
    folder: Path = field(default=Path(), compare=False, metadata=in_json(stored=False))
    """Folder of the experiment."""

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        return f"Experiment({str(self.folder)!r}, {len(self.runs)} of {len(self.planned)} runs)"

    @property
    def target_accuracy(self) -> float:
        """Validation accuracy for which the time to reach it is reported."""
        return self.config.compare.target_accuracy

    @computed_as("unfinished")
    def unfinished_run_names(self) -> list[str]:
        """Names of planned runs that have not ended."""
        finished = {run.name for run in self.runs}
        return [name for name in self.planned if name not in finished]

    @property
    def failed_runs(self) -> list[StrategyRun]:
        """Runs that failed."""
        return [run for run in self.runs if run.failed is not None]

    @cached_property
    def rows(self) -> list[StrategyResult]:
        """Rows with at least one run, by network, strategies as in `STRATEGY_DESCRIPTIONS`."""
        runs_by_row: dict[str, list[StrategyRun]] = {}
        for run in self.runs:
            if run.failed is None:
                runs_by_row.setdefault(run.row, []).append(run)
        rows = [
            StrategyResult(name, tuple(sorted(runs, key=lambda run: run.seed)))
            for name, runs in runs_by_row.items()
        ]
        networks = list(dict.fromkeys(row.network for row in rows))
        strategies = list(STRATEGY_DESCRIPTIONS)
        return sorted(
            rows,
            key=lambda row: (networks.index(row.network), strategies.index(row.first_run.strategy)),
        )

    @property
    def networks(self) -> list[str]:
        """Architectures with their image sizes, in the order of the rows."""
        return list(dict.fromkeys(row.network for row in self.rows))

    def select_rows(self, network: str) -> list[StrategyResult]:
        """Return the rows of one network."""
        return [row for row in self.rows if row.network == network]

    @cached_property
    def comparisons(self) -> list[StrategyComparison]:
        """Comparisons of the strategies of a network and of the networks of a strategy.

        Each is tested on the seeds that both rows have. Pairs without practical interest (scratch
        against scratch in less time) are omitted, because every test increases the other p-values.
        """
        rows = self.rows
        pairs = [
            (first, second)
            for index, second in enumerate(rows)
            for first in rows[index + 1 :]
            if _is_meaningful_pair(first.first_run, second.first_run)
        ]
        differences = [_compare_rows(first, second) for first, second in pairs]
        tested = [
            (first, second, difference)
            for (first, second), difference in zip(pairs, differences, strict=True)
            if difference is not None
        ]
        corrected = apply_holm_correction([difference.p for _, _, difference in tested])
        return [
            StrategyComparison(first.name, second.name, difference, p)
            for (first, second, difference), p in zip(tested, corrected, strict=True)
        ]

    def find_comparison(self, first: str, second: str) -> StrategyComparison | None:
        """Return the comparison of `first` relative to `second`, or None if there is none."""
        for pair in self.comparisons:
            if (pair.first, pair.second) == (first, second):
                return pair
            if (pair.second, pair.first) == (first, second):
                value, low, high, p = astuple(pair.difference)
                reverse = AccuracyDifference(-value, -high, -low, p)
                return StrategyComparison(first, second, reverse, pair.p)
        return None

    def recommend_strategy(self, network: str) -> StrategyResult | None:
        """Return the fastest strategy that is not shown to be less accurate than the best one.

        Among strategies within 10% of the shortest time, the most accurate one is chosen. None if
        no strategy has finished; scratch-equal-time, which cannot be requested, does not count.
        """
        rows = [row for row in self.select_rows(network) if row.first_run.strategy != EQUAL_TIME]
        if not rows:
            return None
        best = max(rows, key=lambda row: row.val_accuracy)
        equivalent = [
            row
            for row in rows
            if row is best or _is_not_worse(self.find_comparison(row.name, best.name))
        ]
        shortest = min(row.seconds for row in equivalent)
        return max(
            (row for row in equivalent if row.seconds <= _MAX_TIME_RATIO * shortest),
            key=lambda row: row.val_accuracy,
        )

    def find_deployed_model(self, network: str) -> DeployedModel | None:
        """Return the exported model of a network, or None if it was not exported."""
        return next((model for model in self.deployed_models if model.network == network), None)

    @computed_as("rows")
    def row_summaries(self) -> list[ExperimentRow]:
        """Summaries of the rows."""
        return [ExperimentRow.of(row, self.target_accuracy) for row in self.rows]

    @computed_as("pairs")
    def pair_summaries(self) -> list[StrategyComparison]:
        """Comparisons of the rows."""
        return self.comparisons

    @computed_as("recommended")
    def recommended_rows(self) -> dict[str, str]:
        """Name of the recommended row of each network."""
        recommended = {network: self.recommend_strategy(network) for network in self.networks}
        return {network: row.name for network, row in recommended.items() if row is not None}

    def to_json(self) -> JsonObject:
        """Return the content of compare.json.

        Rows, pairs and recommendations are included for other readers; edgetl recomputes them.
        """
        return to_json(self)

    def write(self, path: Path) -> None:
        """Write compare.json."""
        write_json(path, self.to_json())


def read_experiment(path: Path) -> Experiment:
    """Read compare.json.

    Raises:
        RunError: The file is missing, broken, or not an experiment.
    """
    content = read_json(path, RunError, "The experiment")
    if content.get("kind") != "compare":
        raise RunError(
            f"{path} is not an experiment: its kind is {content.get('kind')!r}. "
            "Give a folder that `edgetl compare` wrote."
        )
    try:
        experiment = parse_as(Experiment, content, "it", extra="ignore")
        for run in experiment.runs:
            _check_run(run, len(experiment.classes))
        if experiment.screened_networks and experiment.config.compare.latency_budget_ms is None:
            raise FieldError("compare.json has candidates and no latency_budget_ms")
    except FieldError as cause:
        reason = str(cause).removeprefix("it.").removeprefix("it: ")
        raise RunError(
            f"{path} is broken: {reason}. Run `edgetl compare` with the same options to rewrite it."
        ) from cause
    return replace(experiment, folder=path.parent)


def _check_run(run: StrategyRun, classes: int) -> None:
    if run.strategy not in STRATEGY_DESCRIPTIONS:
        raise FieldError(f"{run.name} has an unknown strategy {run.strategy!r}")
    if run.failed is not None:
        return
    if not run.correct or not set(run.correct) <= {"0", "1"} or not run.epochs or run.seconds <= 0:
        raise FieldError(f"{run.name} has finished without predictions, epochs or time")
    if not set(run.test_correct) <= {"0", "1"}:
        raise FieldError(f"test_correct of {run.name} must consist of 0 and 1")
    if len(run.confusion) != classes or any(
        len(counts) != classes or min(counts) < 0 for counts in run.confusion
    ):
        raise FieldError(f"the confusion matrix of {run.name} must be {classes} x {classes}")


def _compare_rows(first: StrategyResult, second: StrategyResult) -> AccuracyDifference | None:
    """Return the difference on shared seeds; None without shared seeds or with other images."""
    second_by_seed = {run.seed: run for run in second.runs}
    first_runs = [run for run in first.runs if run.seed in second_by_seed]
    second_runs = [second_by_seed[run.seed] for run in first_runs]
    image_counts = {len(run.correct_mask) for run in (*first_runs, *second_runs)}
    if not first_runs or len(image_counts) > 1:
        return None
    return compute_accuracy_difference(
        [run.correct_mask for run in first_runs], [run.correct_mask for run in second_runs]
    )


def _is_meaningful_pair(first: StrategyRun, second: StrategyRun) -> bool:
    if (first.architecture, first.image_size) == (second.architecture, second.image_size):
        return {first.strategy, second.strategy} != {"scratch", EQUAL_TIME}
    return first.strategy == second.strategy != EQUAL_TIME


def _is_not_worse(pair: StrategyComparison | None) -> bool:
    return pair is not None and pair.verdict != "less accurate"
