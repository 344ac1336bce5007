"""Title and summary sentences of an evaluation, for its page and the terminal."""

from __future__ import annotations

from pathlib import PurePath

from edgetl.core.artifacts.evaluation import (
    Estimate,
    EvaluationFigures,
    EvaluationResult,
    VariantDifference,
    VariantEvaluation,
)
from edgetl.core.formatting import format_percent, pluralize
from edgetl.report.html.text import join_words


def evaluation_title(result: EvaluationResult) -> str:
    """Return the title: architecture and data."""
    model = result.model.name or PurePath(result.target).name
    return f"Evaluation of {model} on {PurePath(result.data.path).name}"


def evaluation_sentences(result: EvaluationResult) -> list[str]:
    """Summarize an evaluation: accuracy, differences, unknown images, limits and notes."""
    images = f"{pluralize(result.data.images, 'image')} ({result.data.description})"
    sentences = [_describe_variant(variant, images) for variant in result.variants]
    sentences += [describe_difference(pair) for pair in result.comparisons]
    outcomes = [check.outcome for check in result.limit_checks]
    if outcomes:
        counts = [
            f"{outcomes.count(outcome)} {outcome}"
            for outcome in dict.fromkeys(("broken", "undecided", "held"))
            if outcome in outcomes
        ]
        sentences.append(f"Limits: {join_words(counts)}.")
    missing = result.data.missing_classes
    if missing:
        count = pluralize(len(missing), "class has", "classes have")
        sentences.append(f"{count} no images: {_list_names(missing)}.")
    if result.data.ignored_classes:
        ignored = pluralize(sum(result.data.ignored_classes.values()), "image")
        names = _list_names(list(result.data.ignored_classes))
        sentences.append(f"Left out: {ignored} of other classes: {names}.")
    unscored = len(result.data.unscored)
    if unscored:
        sentences.append(f"Not scored: {pluralize(unscored, 'image')} that could not be read.")
    return [*sentences, *result.notes]


def describe_difference(pair: VariantDifference) -> str:
    """Return a sentence with the paired difference, its interval and the verdict."""
    return (
        f"{pair.candidate} against {pair.baseline} on the same images: "
        f"{format_points(pair.difference)}, {pair.verdict}."
    )


def format_points(difference: Estimate) -> str:
    """Format a difference of shares in points with its 95% interval."""
    value, low, high = (
        f"{100 * share:+.1f}" for share in (difference.value, difference.low, difference.high)
    )
    return f"{value} points (95% interval {low} to {high})"


def format_share(estimate: Estimate) -> str:
    """Format a share with its 95% interval."""
    value, low, high = map(format_percent, (estimate.value, estimate.low, estimate.high))
    return f"{value} (95% interval {low} to {high})"


def _describe_variant(variant: VariantEvaluation, images: str) -> str:
    figures = variant.figures
    if figures is None:
        reason = variant.gate.reason or "its logits differ from PyTorch's on the golden images"
        return f"{variant.name} was not evaluated: {reason}."
    return f"{variant.name}: accuracy {format_share(figures.accuracy)} of {images}{_describe_unknown(figures)}."


def _describe_unknown(figures: EvaluationFigures) -> str:
    unknown = figures.unknown
    if unknown is None:
        return ""
    text = f"; {format_share(unknown.rejected)} rejected as unknown"
    if unknown.unknown_images is not None:
        caught = format_share(unknown.unknown_images.caught)
        text += f", and {caught} of {pluralize(unknown.unknown_images.images, 'unknown image')}"
    return text


def _list_names(names: list[str], most: int = 5) -> str:
    if len(names) <= most:
        return join_words(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"
