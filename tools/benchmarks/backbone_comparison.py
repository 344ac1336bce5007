"""Compare pretrained backbones on several data sets: accuracy of the exported files, and latency.

    python -m tools.benchmarks.backbone_comparison DATA... \
        --row mobilenet_v2=imagenet --row efficientnet_lite0=imagenet -o DIR

Each --row is an architecture and a value of `--weights`; the first is the baseline. Every row is
trained with `edgetl finetune` and exported with `edgetl export --variants fp32,int8` on each data
set and seed, each time in new processes. The accuracy in fp32 is that of the run's predictions on
the validation images, which an export proves equal to the file's; that in int8 is the file's.
`--export-seeds` exports the first seeds only, because an export takes longer than the training.

Then the files of the first data set and seed are timed by the protocol of `edgetl bench` in the
same rounds, so that slow periods of the machine affect all of them. `--no-latency` leaves this for
a quieter moment; `--no-accuracy` times what is there.

Repeating the command resumes it. It writes DIR/comparison.json with the correctness of every
prediction and all latencies, and prints a Markdown table.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Literal

import numpy as np

from edgetl import __version__
from edgetl.core.architectures import file_stem
from edgetl.core.artifacts.bench_rows import BenchRow, round_ratios
from edgetl.core.artifacts.run import read_run_record
from edgetl.core.artifacts.run_config import read_run_configuration
from edgetl.core.artifacts.split import read_split
from edgetl.core.config.bench import BenchConfig
from edgetl.core.errors import ConfigError, EdgetlError
from edgetl.core.files import ReadPolicy, read_json_as, write_json
from edgetl.core.formatting import MISSING_VALUE, pluralize
from edgetl.core.paired_tests import (
    AccuracyDifference,
    apply_holm_correction,
    compute_accuracy_difference,
    mcnemar,
)
from edgetl.core.paths import RunDirectory
from edgetl.core.statistics import Speedup, paired_speedup
from edgetl.core.typed_json import to_json
from edgetl.device.bench.correctness_gate import GatedCase, run_gates
from edgetl.device.bench.inputs import prepare_bench_inputs
from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.bench.rounds import RoundRunner
from edgetl.device.bench.target import find_target
from edgetl.device.hardware.info import collect_device_info
from edgetl.device.runtime.bundle import Bundle, open_bundle
from edgetl.export.parity.metrics import logits_for_images
from tools.benchmarks.backbone_gain import Backbone
from tools.benchmarks.finetune_speed import execute

RESULT = "comparison.json"
PERMUTATIONS = 20_000
CHUNK = 1000
"""Permutations computed at a time, to bound the memory."""
VariantName = Literal["fp32", "int8"]
VARIANTS: tuple[VariantName, ...] = ("int8", "fp32")


@dataclass(frozen=True)
class ComparedRun:
    """A run and its exported files."""

    data: str
    """Name of the data set."""
    architecture: str
    weights: str
    """Name of the weights, without the folders of the machine."""
    seed: int
    train_images: int
    parameters: int
    """Number of parameters, including the new head."""
    seconds: float
    """Duration of the training, without imports and plots."""
    fp32: str
    """Predictions on the validation images in the order of split.csv: 1 is correct, 0 wrong."""
    int8: str = ""
    """The same for the exported file; empty if the run was not exported."""
    int8_method: str | None = None
    """Scheme of the quantization."""
    export_failed: str | None = None
    """Reason why there is no exported file although one was requested."""

    def correct_mask(self, variant: VariantName) -> list[bool]:
        """Whether each validation image was classified correctly; empty without a file."""
        return [digit == "1" for digit in (self.int8 if variant == "int8" else self.fp32)]

    def accuracy(self, variant: VariantName) -> float:
        """Return the share of correct validation images."""
        return fmean(self.correct_mask(variant))


@dataclass(frozen=True)
class LatencyResult:
    """Latencies of all rows' files, measured in the same rounds."""

    created: str
    cpu: str | None
    noise: str
    """Verdict on the machine during the rounds."""
    rows: tuple[BenchRow, ...]
    """A row's variant is `<architecture> <variant>`."""

    def row(self, architecture: str, variant: VariantName) -> BenchRow | None:
        """Return the row of a file, or None if it was not timed."""
        name = latency_name(architecture, variant)
        return next((row for row in self.rows if row.variant == name and row.rounds), None)


@dataclass(frozen=True)
class ComparisonResult:
    """Content of comparison.json."""

    edgetl: str
    baseline: str
    """Architecture that the others are compared with."""
    runs: tuple[ComparedRun, ...]
    latency: LatencyResult | None = None
    kind: Literal["backbone-comparison"] = "backbone-comparison"

    @property
    def data_sets(self) -> list[str]:
        """Names of the data sets, in the order of the runs."""
        return list(dict.fromkeys(run.data for run in self.runs))

    @property
    def architectures(self) -> list[str]:
        """Architectures, the baseline first."""
        return list(dict.fromkeys([self.baseline, *(run.architecture for run in self.runs)]))

    def select_runs(self, data: str, architecture: str) -> list[ComparedRun]:
        """Return the runs of an architecture on a data set, by seed."""
        runs = [run for run in self.runs if run.data == data and run.architecture == architecture]
        return sorted(runs, key=lambda run: run.seed)

    def paired_masks(
        self, data: str, architecture: str, variant: VariantName
    ) -> list[tuple[list[bool], list[bool]]]:
        """Return the correctness (architecture, baseline) of the seeds that both have."""
        baseline = {
            run.seed: run.correct_mask(variant) for run in self.select_runs(data, self.baseline)
        }
        return [
            (run.correct_mask(variant), baseline[run.seed])
            for run in self.select_runs(data, architecture)
            if run.correct_mask(variant) and baseline.get(run.seed)
        ]


@dataclass(frozen=True)
class SetDifference:
    """Accuracy of a row minus that of the baseline on one data set."""

    data: str
    difference: AccuracyDifference
    """Over all seeds."""
    discordant: tuple[tuple[int, int, float], ...]
    """McNemar's test of each seed: images only correct with the row, only with the baseline, p."""


@dataclass(frozen=True)
class OverallDifference:
    """Mean over the data sets of the accuracy of a row minus that of the baseline."""

    sets: tuple[SetDifference, ...]
    value: float
    low: float
    """Lower bound of the 95% interval for these data sets, other images and other seeds."""
    high: float
    image_p: float
    """Permutation test over images: for these data sets and seeds, other images."""
    set_p: float
    """Permutation test over data sets: for other data sets."""


def read_comparison(file: Path) -> ComparisonResult:
    """Read a result of this tool.

    Raises:
        ConfigError: the file cannot be read, or a field is missing or of the wrong type.
    """
    policy = ReadPolicy(ConfigError, "Delete it and repeat the command; finished runs are kept.")
    return read_json_as(ComparisonResult, file, "The comparison", policy)


def latency_name(architecture: str, variant: str) -> str:
    return f"{architecture} {variant}"


def compute_overall_difference(
    result: ComparisonResult, architecture: str, variant: VariantName
) -> OverallDifference | None:
    """Compare an architecture with the baseline; None without a data set that both finished.

    The image is the unit of the permutation test, not the prediction: the seeds share the images,
    so counting each seed's predictions as independent would overstate the evidence. Data sets have
    equal weights.
    """
    sets: list[SetDifference] = []
    image_means: list[list[float]] = []
    for data in result.data_sets:
        pairs = result.paired_masks(data, architecture, variant)
        if not pairs:
            continue
        first, second = [mask for mask, _ in pairs], [mask for _, mask in pairs]
        difference = compute_accuracy_difference(first, second)
        tests = tuple(mcnemar(*masks) for masks in zip(first, second, strict=True))
        sets.append(SetDifference(data, difference, tests))
        signed = np.asarray(first, np.int8) - np.asarray(second, np.int8)
        image_means.append(signed.mean(0).tolist())
    if not sets:
        return None
    value = fmean(item.difference.value for item in sets)
    # The sets are independent samples, so the variances of their differences add up.
    half_widths = [(item.difference.high - item.difference.low) / 2 for item in sets]
    half_width = float(np.linalg.norm(half_widths)) / len(sets)
    return OverallDifference(
        sets=tuple(sets),
        value=value,
        low=value - half_width,
        high=value + half_width,
        image_p=permute_images(image_means),
        set_p=permute_sets([item.difference.value for item in sets]),
    )


def permute_images(differences: Sequence[Sequence[float]]) -> float:
    """Return the p-value of the paired permutation test for the mean over data sets.

    Under the null hypothesis the two models are exchangeable on every image, so the sign of an
    image's difference is random (Fisher, 1935; Good, 2005). Monte Carlo with a fixed seed; the
    observed arrangement counts as one of them, so the smallest value is 1 / (PERMUTATIONS + 1).

    Args:
        differences: difference of each image, mean over seeds, [data sets][images].
    """
    weighted = np.concatenate([np.asarray(values) / len(values) for values in differences])
    weighted = weighted[weighted != 0]
    observed = abs(weighted.sum())
    generator = np.random.default_rng(0)
    extreme = 0
    for _ in range(PERMUTATIONS // CHUNK):
        signs = generator.integers(0, 2, (CHUNK, len(weighted)), np.int8) * 2 - 1
        # The margin counts arrangements that equal the observed one despite rounding.
        extreme += int((abs(signs @ weighted) >= observed - 1e-9).sum())
    return (1 + extreme) / (1 + PERMUTATIONS)


def permute_sets(differences: Sequence[float]) -> float:
    """Return the exact two-sided p-value of the paired permutation test over data sets.

    Six data sets reach 2/64 at best, which is the point of the test: few data sets say little about
    further ones (Demšar, 2006).
    """
    observed = abs(sum(differences))
    sums = [
        abs(sum(sign * value for sign, value in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return sum(value >= observed - 1e-9 for value in sums) / len(sums)


def compare_speed(
    latency: LatencyResult, architecture: str, baseline: str, variant: VariantName
) -> Speedup | None:
    """Return the baseline's p50 over an architecture's; None if one of them was not timed."""
    before, after = latency.row(baseline, variant), latency.row(architecture, variant)
    if before is None or after is None:
        return None
    return paired_speedup(round_ratios(before, after))


def run_folder(output: Path, data: Path, backbone: Backbone, seed: int) -> Path:
    """Return the run directory of a row."""
    return output / data.name / f"{file_stem(backbone.architecture)}-s{seed}"


def measure_run(
    data: Path, backbone: Backbone, seed: int, folder: Path, with_export: bool
) -> ComparedRun:
    """Train and export what is missing of a run, and classify the validation images."""
    checkpoint = folder.with_name(f"{folder.name}.json")
    if checkpoint.is_file():
        policy = ReadPolicy(ConfigError, "Delete it to repeat the run.")
        earlier = read_json_as(ComparedRun, checkpoint, "The run's result", policy)
        if earlier.int8 or earlier.export_failed or not with_export:
            return earlier
    run = RunDirectory(folder)
    program = [sys.executable, "-m", "edgetl"]
    failure: str | None = None
    with tempfile.TemporaryDirectory(prefix="backbone-comparison-") as cache:
        variables = {"EDGETL_CACHE": cache}
        if not run.metrics.is_file():
            arguments = ["finetune", str(data), "--model", backbone.architecture]
            arguments += ["--weights", backbone.weights, "--seed", str(seed)]
            execute([*program, *arguments, "-o", str(folder), "--force"], variables)
        if with_export and not has_bundle(run):
            try:
                execute([*program, "export", str(folder), "--variants", "fp32,int8"], variables)
            except SystemExit as error:
                # A refused export is a result of the comparison.
                failure = str(error)
    result = classify_run(run, data.name, backbone, seed)
    result = replace(result, export_failed=failure)
    write_json(checkpoint, to_json(result))
    return result


def has_bundle(run: RunDirectory) -> bool:
    """Return whether the run was exported completely."""
    return (run.bundle / "bundle.json").is_file()


def classify_run(run: RunDirectory, data: str, backbone: Backbone, seed: int) -> ComparedRun:
    """Read a run's predictions, and classify the validation images with its int8 file if any."""
    record = read_run_record(run.path)
    metrics = record.metrics
    assert metrics is not None
    predictions = record.predictions or ()
    result = ComparedRun(
        data=data,
        architecture=backbone.architecture,
        weights=backbone.name,
        seed=seed,
        train_images=metrics.train.images,
        parameters=metrics.parameters.total,
        seconds=metrics.seconds["total"],
        fp32="".join("1" if item.label == item.predicted else "0" for item in predictions),
    )
    if not has_bundle(run):
        return result
    bundle = open_bundle(run)
    method = bundle.select_variant("int8").report.method
    return replace(result, int8=correct_digits(run, bundle, "int8"), int8_method=method)


def correct_digits(run: RunDirectory, bundle: Bundle, variant: VariantName) -> str:
    """Return 1 for each validation image that the variant classifies correctly, else 0."""
    record = bundle.select_variant(variant)
    images = [row for row in read_split(run, read_run_configuration(run)) if row.split == "val"]
    logits = logits_for_images(
        bundle.variant_path(record),
        [row.path for row in images],
        bundle.preprocessing,
        record.input,
    )
    predicted = [bundle.labels[index] for index in logits.argmax(1)]
    return "".join(
        "1" if row.label == label else "0" for row, label in zip(images, predicted, strict=True)
    )


def measure_latency(
    folders: dict[str, Path], threads: int, rounds: int, protocol: BenchProtocol | None = None
) -> LatencyResult:
    """Time fp32 and int8 of all bundles in scope `model` in the same rounds.

    Args:
        folders: run directory of each architecture.
        threads: intra-op threads.
        rounds: number of rounds.
        protocol: lengths of blocks and warm-up; None for the default protocol.
    """
    created = datetime.now(UTC).isoformat(timespec="seconds")
    runner = RoundRunner()
    with tempfile.TemporaryDirectory(prefix="backbone-comparison-") as name:
        gated_cases: list[GatedCase] = []
        for number, (architecture, folder) in enumerate(folders.items()):
            inputs = Path(name, str(number))
            inputs.mkdir()
            gated_cases += _gate(architecture, folder, threads, protocol, inputs)
        runner.measure(gated_cases, rounds, 0, Path(name), _print_step)
    rows = [runner.attach_rounds(row) for item in gated_cases for row in item.rows]
    noise = runner.evaluate_noise()
    return LatencyResult(created, collect_device_info().cpu, noise.verdict, tuple(rows))


def _gate(
    architecture: str,
    folder: Path,
    threads: int,
    protocol: BenchProtocol | None,
    inputs: Path,
) -> Iterator[GatedCase]:
    """Check the files of a bundle; the cases carry the name of the architecture."""
    config = BenchConfig(folder, scopes=("model",), torch_modes=(), variants=("fp32", "int8"))
    target = find_target(config, (threads,))
    assert target.bundle is not None
    cases, notes = run_gates(
        target.cases,
        prepare_bench_inputs(target.bundle, target.input_specs, inputs),
        protocol or BenchProtocol(),
        inputs,
        _print_step,
    )
    for note in notes:
        print(note, file=sys.stderr)
    for gated_case in cases:
        if not gated_case.passed:
            reason = gated_case.rows[0].gate.reason
            raise ConfigError(f"{architecture} {gated_case.case.variant}: {reason}")
        name = latency_name(architecture, gated_case.case.variant)
        yield replace(
            gated_case,
            case=replace(gated_case.case, variant=name),
            rows=tuple(replace(row, variant=name) for row in gated_case.rows),
        )


def _print_step(step: str, done: int, total: int) -> None:
    print(f"{step} ({done} of {total})" if total else step, file=sys.stderr, flush=True)


def markdown(result: ComparisonResult) -> str:
    """Return the tables of a result."""
    sections = [_accuracy_section(result), _overall_section(result)]
    if result.latency is not None:
        sections.append(_latency_section(result, result.latency))
    return "\n\n".join(section for section in sections if section)


def _accuracy_section(result: ComparisonResult) -> str:
    lines = [
        "| data set | images | architecture | fp32 | by seed | fp32 minus baseline [95%] "
        "| McNemar by seed, only this : only baseline | int8 minus fp32, by seed |",
        "| --- | --- | --- | ---: | --- | ---: | --- | --- |",
    ]
    overall = {
        architecture: compute_overall_difference(result, architecture, "fp32")
        for architecture in result.architectures[1:]
    }
    for data in result.data_sets:
        for architecture in result.architectures:
            runs = result.select_runs(data, architecture)
            if not runs:
                continue
            comparison = overall.get(architecture)
            sets = () if comparison is None else comparison.sets
            difference = next((item for item in sets if item.data == data), None)
            accuracies = [run.accuracy("fp32") for run in runs]
            cells = [
                data,
                f"{runs[0].train_images} + {len(runs[0].fp32)}",
                architecture,
                f"{100 * fmean(accuracies):.1f}",
                ", ".join(f"{100 * value:.1f}" for value in accuracies),
                *_difference_cells(difference),
                ", ".join(map(_format_int8_loss, runs)),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _format_int8_loss(run: ComparedRun) -> str:
    if run.int8:
        return f"{100 * (run.accuracy('int8') - run.accuracy('fp32')):+.1f}"
    return "failed" if run.export_failed else MISSING_VALUE


def _difference_cells(item: SetDifference | None) -> tuple[str, str]:
    if item is None:
        return "", ""
    tests = ", ".join(f"{wins}:{losses} (p {p:.2g})" for wins, losses, p in item.discordant)
    return _format_interval(item.difference), tests


def _format_interval(item: AccuracyDifference | OverallDifference) -> str:
    return f"{100 * item.value:+.1f} [{100 * item.low:+.1f}, {100 * item.high:+.1f}]"


def _overall_section(result: ComparisonResult) -> str:
    rows = [
        (architecture, variant, compute_overall_difference(result, architecture, variant))
        for variant in VARIANTS
        for architecture in result.architectures[1:]
    ]
    compared = [row for row in rows if row[2] is not None]
    corrected = apply_holm_correction([item.image_p for _, _, item in compared if item])
    lines = [
        f"Mean over data sets, minus {result.baseline}:",
        "",
        "| architecture | variant | points [95%] | sets better : worse | p over images "
        "| Holm | p over sets |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: |",
    ]
    for (architecture, variant, item), holm in zip(compared, corrected, strict=True):
        assert item is not None
        better = sum(entry.difference.value > 0 for entry in item.sets)
        worse = sum(entry.difference.value < 0 for entry in item.sets)
        lines.append(
            f"| {architecture} | {variant} | {_format_interval(item)} | {better} : {worse} "
            f"| {item.image_p:.2g} | {holm:.2g} | {item.set_p:.2g} |"
        )
    return "\n".join(lines) if compared else ""


def _latency_section(result: ComparisonResult, latency: LatencyResult) -> str:
    threads = latency.rows[0].threads
    lines = [
        f"{latency.cpu}, {pluralize(threads, 'thread')}, "
        f"{len(latency.rows[0].rounds)} rounds, {latency.created[:10]}, {latency.noise}:",
        "",
        f"| architecture | int8 p50, ms [95%] | fp32 p50, ms [95%] | {result.baseline} int8 / this "
        "[95%] | int8 gain [95%] |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for architecture in result.architectures:
        int8, fp32 = (latency.row(architecture, variant) for variant in VARIANTS)
        if int8 is None or fp32 is None:
            continue
        against_baseline = compare_speed(latency, architecture, result.baseline, "int8")
        gain = paired_speedup(round_ratios(fp32, int8))
        cells = [
            architecture,
            _format_latency(int8),
            _format_latency(fp32),
            _format_speedup(against_baseline),
            _format_speedup(gain),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _format_latency(row: BenchRow) -> str:
    interval = row.p50_interval_ms
    text = f"{row.p50_ms:.2f}"
    return text if interval is None else f"{text} [{interval[0]:.2f}, {interval[1]:.2f}]"


def _format_speedup(speedup: Speedup | None) -> str:
    if speedup is None:
        return ""
    return f"{speedup.ratio:.2f} [{speedup.low:.2f}, {speedup.high:.2f}]"


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmarks.backbone_comparison",
        description="Compare pretrained backbones on several data sets.",
    )
    parser.add_argument(
        "data", metavar="DATA", type=Path, nargs="+", help="data sets, as for `edgetl finetune`"
    )
    parser.add_argument(
        "--row",
        action="append",
        required=True,
        metavar="ARCHITECTURE=WEIGHTS",
        help="architecture and weights, repeatable; the first is the baseline",
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds [3]")
    parser.add_argument(
        "--export-seeds", type=int, help="number of seeds to export [all]", metavar="N"
    )
    parser.add_argument("--threads", type=int, default=1, help="intra-op threads [1]")
    parser.add_argument("--rounds", type=int, default=8, help="rounds of latencies [8]")
    parser.add_argument("--accuracy", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--latency", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the runs")
    return parser.parse_args(arguments)


def _measure(options: argparse.Namespace) -> ComparisonResult:
    backbones = [Backbone.parse(text) for text in options.row]
    file = options.output / RESULT
    result = ComparisonResult(__version__, backbones[0].architecture, ())
    if file.is_file():
        result = read_comparison(file)
    if options.accuracy:
        runs: list[ComparedRun] = []
        # Seeds outermost: an interrupted comparison has whole seeds of every row.
        for seed, data, backbone in itertools.product(
            range(options.seeds), options.data, backbones
        ):
            folder = run_folder(options.output, data, backbone, seed)
            with_export = options.export_seeds is None or seed < options.export_seeds
            run = measure_run(data.absolute(), backbone, seed, folder, with_export)
            runs.append(run)
            accuracy = f"fp32 {run.accuracy('fp32'):.1%}, int8 minus fp32 {_format_int8_loss(run)}"
            print(f"{run.data} {run.architecture} seed {seed}: {accuracy}", file=sys.stderr)
            result = replace(result, baseline=backbones[0].architecture, runs=tuple(runs))
            write_json(file, to_json(result))
    if options.latency:
        folders = {
            backbone.architecture: run_folder(options.output, options.data[0], backbone, 0)
            for backbone in backbones
        }
        latency = measure_latency(folders, options.threads, options.rounds)
        result = replace(result, latency=latency)
        write_json(file, to_json(result))
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse_arguments(arguments)
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    try:
        result = _measure(options)
    except EdgetlError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Interrupted. Repeat the command to resume.")
    print(markdown(result))


if __name__ == "__main__":
    main()
