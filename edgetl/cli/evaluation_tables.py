"""Terminal output of an evaluation: tables, differences, limits and the path of the result."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from edgetl.cli.bench_tables import OUTCOME_STYLES
from edgetl.cli.console import out, plain_table
from edgetl.core.formatting import (
    MISSING_VALUE,
    format_duration,
    format_percent,
    pluralize,
)

if TYPE_CHECKING:
    from edgetl.core.artifacts.evaluation import (
        ClassEvaluation,
        Estimate,
        EvaluationFigures,
        EvaluationResult,
        UnscoredImage,
        VariantDifference,
    )

VERDICT_STYLES = {"better": "green", "worse": "bold red", "inconclusive": "yellow"}
_MAX_CLASSES = 12
_MAX_CONFUSIONS = 5
_MAX_GROUPS = 12
_MAX_MISTAKES = 5
_MAX_UNSCORED = 5

Figures = dict[str, "EvaluationFigures"]
"""Figures of the evaluated variants by name."""


def show_evaluation(result: EvaluationResult) -> None:
    """Print an evaluation as tables and notes."""
    figures = {
        variant.name: variant.figures for variant in result.variants if variant.figures is not None
    }
    model = escape(result.model.name or result.target)
    threads = pluralize(result.threads, "thread")
    device = escape(result.device.description)
    out.print(f"[bold]{model}[/] on {device}, {result.provider}, {threads}")
    _print_line("Images", _describe_images(result))
    out.print()
    out.print(_variant_table(result, figures))
    out.print()
    out.print(_class_table(result, figures))
    _show_hidden_classes(result)
    out.print()
    for key in next(iter(figures.values())).groups:
        out.print(_group_table(key, figures))
        _show_hidden_groups(key, figures)
        out.print()
    if any(entry.prediction_sets for entry in figures.values()):
        out.print(_prediction_set_table(figures))
        out.print()
    if any(entry.unknown is not None for entry in figures.values()):
        out.print(_unknown_table(figures))
        out.print()
    if any(entry.corruptions for entry in figures.values()):
        out.print(_corruption_table(figures))
        out.print()
    for difference in result.comparisons:
        _show_difference(difference)
    _show_mistakes(figures)
    _show_unscored(result)
    for note in result.notes:
        _print_line("Note", note)
    for check in result.limit_checks:
        style = OUTCOME_STYLES[check.outcome]
        out.print(f"{'Limit':<11}[{style}]{check.outcome}[/] --{check.limit}: ", end="")
        out.print(check.why, markup=False, soft_wrap=True)
    if result.path is not None:
        _print_line("Result", str(result.path))


def _describe_images(result: EvaluationResult) -> str:
    data = result.data
    present = len(data.per_class) - len(data.missing_classes)
    text = f"{data.images:,} of {pluralize(present, 'class', 'classes')} in {data.description}"
    if data.split is not None and data.split not in data.description:
        text += f" ({data.split} split)"
    if data.ignored_classes:
        count = sum(data.ignored_classes.values())
        text += f"; {count:,} of other classes left out"
    if result.unknown_data is not None:
        unknown = result.unknown_data
        text += f"; {unknown.images:,} of no known class in {unknown.path}"
    return f"{text}; decoded and classified in {format_duration(result.seconds)}"


def _variant_table(result: EvaluationResult, figures: Figures) -> Table:
    table = plain_table()
    table.add_column("variant")
    top_k = list(next(iter(figures.values())).top_k)
    headings = ["accuracy", "balanced", "macro-F1", *(f"top-{k}" for k in top_k)]
    for heading in (*headings, "ECE", "Brier", "AURC"):
        table.add_column(heading, justify="right")
    for variant in result.variants:
        entry = figures.get(variant.name)
        if entry is None:
            table.add_row(escape(variant.name), "[bold red]failed the golden images[/]")
            continue
        calibration = entry.calibration
        shares = (entry.accuracy, entry.balanced_accuracy, entry.macro_f1)
        table.add_row(
            escape(variant.name),
            *map(_format_share, (*shares, *(entry.top_k[k] for k in top_k))),
            _format_number(calibration.calibration_error),
            _format_number(calibration.brier),
            _format_number(entry.risk_coverage.aurc),
        )
    return table


def _class_table(result: EvaluationResult, figures: Figures) -> Table:
    table = plain_table()
    table.add_column("class")
    table.add_column("images", justify="right")
    table.add_column("variant")
    for heading in ("recall", "precision", "F1"):
        table.add_column(heading, justify="right")
    table.add_column("predicted instead")
    for label in _select_classes(result, figures):
        for index, (name, entry) in enumerate(figures.items()):
            scores = entry.per_class[label]
            table.add_row(
                "" if index else escape(label),
                "" if index else f"{scores.images:,}",
                escape(name),
                *map(_format_optional, (scores.recall, scores.precision, scores.f1)),
                escape(_describe_confusions(entry, label, scores)),
            )
    return table


def _select_classes(result: EvaluationResult, figures: Figures) -> list[str]:
    """Return the classes to show, in the order of the labels; of many, those of lowest recall."""
    present = [label for label in result.labels if label not in result.data.missing_classes]
    per_class = next(iter(figures.values())).per_class
    if len(present) <= _MAX_CLASSES:
        return present
    lowest = sorted(present, key=lambda label: _recall(per_class[label]))[:_MAX_CLASSES]
    return [label for label in present if label in lowest]


def _recall(scores: ClassEvaluation) -> float:
    return 1.0 if scores.recall is None else scores.recall.value


def _show_hidden_classes(result: EvaluationResult) -> None:
    hidden = len(result.labels) - len(result.data.missing_classes) - _MAX_CLASSES
    if hidden > 0:
        out.print(
            f"{pluralize(hidden, 'class', 'classes')} with a higher recall "
            f"{'is' if hidden == 1 else 'are'} in the result.",
            style="dim",
        )


def _describe_confusions(entry: EvaluationFigures, label: str, scores: ClassEvaluation) -> str:
    """Return the most frequent wrong predictions for a class, such as `roses 3, tulips 1`."""
    cells = [cell for cell in entry.confusion if cell.label == label and cell.predicted != label]
    cells.sort(key=lambda cell: -cell.images)
    listed = [f"{cell.predicted} {cell.images}" for cell in cells[:_MAX_CONFUSIONS]]
    others = scores.images - scores.correct - sum(cell.images for cell in cells[:_MAX_CONFUSIONS])
    return ", ".join([*listed, *([f"others {others}"] if others else [])])


def _group_table(key: str, figures: Figures) -> Table:
    table = plain_table()
    table.add_column(escape(key))
    table.add_column("images", justify="right")
    table.add_column("variant")
    for heading in ("accuracy", "balanced"):
        table.add_column(heading, justify="right")
    has_unknown = any(entry.unknown is not None for entry in figures.values())
    if has_unknown:
        table.add_column("rejected", justify="right")
    first = next(iter(figures.values())).groups[key]
    lowest = sorted(first, key=lambda value: first[value].accuracy.value)[:_MAX_GROUPS]
    for value in (value for value in first if value in lowest):
        for index, (name, entry) in enumerate(figures.items()):
            group = entry.groups[key][value]
            rejected = [_format_optional(group.rejected)] if has_unknown else []
            table.add_row(
                "" if index else escape(value or "(none)"),
                "" if index else f"{group.images:,}",
                escape(name),
                _format_share(group.accuracy),
                _format_share(group.balanced_accuracy),
                *rejected,
            )
    return table


def _show_hidden_groups(key: str, figures: Figures) -> None:
    hidden = len(next(iter(figures.values())).groups[key]) - _MAX_GROUPS
    if hidden > 0:
        out.print(f"{hidden} more with a higher accuracy in the result.", style="dim")


def _prediction_set_table(figures: Figures) -> Table:
    table = plain_table()
    table.add_column("prediction sets")
    table.add_column("variant")
    for heading in ("contain the class", "mean size", "empty", "one class"):
        table.add_column(heading, justify="right")
    levels = {
        sets.coverage_level: None for entry in figures.values() for sets in entry.prediction_sets
    }
    for level in levels:
        rows = [
            (name, sets)
            for name, entry in figures.items()
            for sets in entry.prediction_sets
            if sets.coverage_level == level
        ]
        for index, (name, sets) in enumerate(rows):
            table.add_row(
                "" if index else f"coverage {level:.4g}",
                escape(name),
                _format_share(sets.covered),
                _format_number(sets.mean_size, 2),
                format_percent(sets.empty),
                format_percent(sets.single),
            )
    return table


def _unknown_table(figures: Figures) -> Table:
    table = plain_table()
    table.add_column("unknown")
    for heading in ("known rejected", "mistakes rejected", "accuracy of the rest"):
        table.add_column(heading, justify="right")
    has_images = any(
        entry.unknown is not None and entry.unknown.unknown_images is not None
        for entry in figures.values()
    )
    if has_images:
        table.add_column("unknown caught", justify="right")
        table.add_column("AUROC", justify="right")
    for name, entry in figures.items():
        unknown = entry.unknown
        if unknown is None:
            table.add_row(escape(name), MISSING_VALUE)
            continue
        images = unknown.unknown_images
        cells = (
            [] if images is None else [_format_share(images.caught), _format_number(images.auroc)]
        )
        table.add_row(
            escape(name),
            _format_share(unknown.rejected),
            _format_optional(unknown.rejected_mistakes),
            _format_optional(unknown.accepted_accuracy),
            *cells,
        )
    return table


def _corruption_table(figures: Figures) -> Table:
    """Return a table of accuracies by kind and severity; intervals are in the result."""
    corruptions = next(iter(figures.values())).corruptions
    severities = sorted({corruption.severity for corruption in corruptions})
    table = plain_table()
    table.add_column("accuracy after")
    table.add_column("variant")
    for severity in severities:
        table.add_column(f"severity {severity}", justify="right")
    for kind in dict.fromkeys(corruption.kind for corruption in corruptions):
        for index, (name, entry) in enumerate(figures.items()):
            shares = {
                corruption.severity: corruption.accuracy.value
                for corruption in entry.corruptions
                if corruption.kind == kind
            }
            table.add_row(
                "" if index else kind,
                escape(name),
                *(format_percent(shares[severity]) for severity in severities),
            )
    return table


def _show_difference(pair: VariantDifference) -> None:
    points = [100 * value for value in (pair.difference.value, *pair.difference.interval)]
    corrected = ""
    if pair.corrected_p != pair.p:
        corrected = f", {pair.corrected_p:.3g} corrected for the number of variants"
    out.print(
        f"{'Paired':<11}{escape(pair.candidate)} against {escape(pair.baseline)}: "
        f"{points[0]:+.1f} points \\[{points[1]:+.1f}, {points[2]:+.1f}], "
        f"[{VERDICT_STYLES[pair.verdict]}]{pair.verdict}[/]; only {escape(pair.candidate)} correct "
        f"{pair.only_candidate:,}, only {escape(pair.baseline)} {pair.only_baseline:,}, "
        f"McNemar p = {pair.p:.3g}{corrected}",
        soft_wrap=True,
    )


def _show_mistakes(figures: Figures) -> None:
    """Print the most confident wrong predictions of the first variant."""
    name, entry = next(iter(figures.items()))
    wrong = sum(scores.images for scores in entry.per_class.values()) - entry.correct
    for index, mistake in enumerate(islice(entry.mistakes, _MAX_MISTAKES)):
        _print_line(
            "" if index else "Mistakes",
            f"{mistake.path}: {mistake.predicted} {mistake.probability:.4f}, "
            f"expected {mistake.label}",
        )
    if wrong > _MAX_MISTAKES:
        _print_line("", f"the most confident of {wrong:,} by {name}; --predictions writes all")


def _show_unscored(result: EvaluationResult) -> None:
    unscored: Sequence[UnscoredImage] = result.data.unscored
    if result.unknown_data is not None:
        unscored = (*unscored, *result.unknown_data.unscored)
    for index, image in enumerate(unscored[:_MAX_UNSCORED]):
        _print_line("" if index else "Not read", f"{image.path}: {image.reason}")
    if len(unscored) > _MAX_UNSCORED:
        _print_line("", f"and {len(unscored) - _MAX_UNSCORED:,} more in the result")


def _format_share(estimate: Estimate) -> str:
    return (
        f"{format_percent(estimate.value)} [dim]\\[{100 * estimate.low:.1f}, "
        f"{100 * estimate.high:.1f}][/]"
    )


def _format_optional(estimate: Estimate | None) -> str:
    return MISSING_VALUE if estimate is None else _format_share(estimate)


def _format_number(estimate: Estimate, decimals: int = 3) -> str:
    return (
        f"{estimate.value:.{decimals}f} [dim]\\[{estimate.low:.{decimals}f}, "
        f"{estimate.high:.{decimals}f}][/]"
    )


def _print_line(heading: str, text: str) -> None:
    out.print(f"{heading:<11}{text}", markup=False, soft_wrap=True)
