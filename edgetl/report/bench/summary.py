"""Summary of the benchmark report: a card for each result, and its sentences."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from edgetl.core.artifacts.bench import EAGER_VARIANT, BenchResult
from edgetl.core.artifacts.comparison import RowComparison
from edgetl.core.artifacts.runtime_comparison import (
    PLAIN_NAME,
    compare_with_plain,
    list_runtimes,
)
from edgetl.core.formatting import format_milliseconds, pluralize
from edgetl.report.html.blocks import (
    Badge,
    Cell,
    Section,
    bullets,
    card,
    grid,
    paragraph,
)
from edgetl.report.html.text import (
    OTHER_DEVICE_BADGE,
    OUTCOME_TONES,
    accuracy_cell,
    device_and_host,
    find_baseline_comparison,
    format_interval,
    format_p50_interval,
    format_rate,
    full_row_name,
    join_words,
    model_name,
    noise_badge,
    p50_cell,
    result_titles,
    row_names,
    speedup_cell,
)


def page_title(results: Sequence[BenchResult]) -> tuple[str, str]:
    """Return the title of the page and the sentence below it."""
    devices = list(dict.fromkeys(device_and_host(result.device) for result in results))
    models = join_words(list(dict.fromkeys(model_name(result) for result in results)))
    counts = f"{pluralize(len(results), 'result')}, {pluralize(len(devices), 'device')}"
    return f"Latency of {models}", f"{counts}: {models} on {join_words(devices)}."


def summary_section(results: Sequence[BenchResult]) -> Section:
    """Build a card for each result: the recommended configuration, its speed-up and caveats."""
    cards = [
        _result_card(title, result, results)
        for title, result in zip(result_titles(results), results, strict=True)
    ]
    return Section("summary", "Summary", (grid("cards", cards),))


def summary_sentence(result: BenchResult) -> str:
    """Summarize the result in one sentence: model, device, recommended configuration, latency."""
    subject = f"{model_name(result)} on {device_and_host(result.device)}"
    recommendation = result.recommendation
    if recommendation is None:
        reason = "nothing but PyTorch was timed"
        if result.failed_rows:
            reason = "no row passed the gate"
        return f"{subject}: {reason}, so nothing is recommended."
    row = result.get_row(recommendation.latency.row)
    latency = f"{format_milliseconds(row.p50_ms)} ms"
    p50 = f"p50 {format_p50_interval(row)}".rstrip()
    text = f"{subject}: {full_row_name(row)} takes {latency} ({p50}, scope {row.scope})"
    pair = find_baseline_comparison(result, row.id)
    if pair is None:
        return f"{text}; no baseline was measured in the same run."
    return f"{text}, {_speedup_phrase(result, pair)}."


def caveat_sentences(result: BenchResult) -> list[str]:
    """Return sentences on alternatives to the recommended row, on noise and on refused rows."""
    return [
        *_fastest_pytorch_sentences(result),
        *_alternative_sentences(result),
        *(f"Noise: {reason}." for reason in result.noise.reasons),
        *_failure_sentences(result),
    ]


def _result_card(title: str, result: BenchResult, results: Sequence[BenchResult]) -> Markup:
    blocks = [
        paragraph("", badges=_result_badges(result, results[0])),
        paragraph(summary_sentence(result)),
    ]
    caveats = caveat_sentences(result)
    if caveats:
        blocks.append(bullets(caveats))
    return card(title, _key_facts(result, results), blocks)


def _key_facts(result: BenchResult, results: Sequence[BenchResult]) -> list[tuple[str, Cell]]:
    recommendation = result.recommendation
    if recommendation is None:
        return []
    row = result.get_row(recommendation.latency.row)
    facts = [("p50, one inference", p50_cell(row, unit=" ms"))]
    pair = find_baseline_comparison(result, row.id)
    if pair is not None:
        baseline = result.get_row(pair.baseline)
        facts.append((f"against {baseline.name}", speedup_cell(pair)))
    comparison = compare_with_plain(result, row, results)
    all_rows = (other for entry in results for other in entry.rows)
    if comparison is not None and len(list_runtimes(all_rows)) > 1:
        facts.append((f"against {PLAIN_NAME}", speedup_cell(comparison)))
    facts.append(
        ("highest images/s", Cell(format_rate(recommendation.throughput.images_per_second)))
    )
    if row.accuracy is not None:
        facts.append(("accuracy at export", accuracy_cell(row.accuracy)))
    return facts


def _result_badges(result: BenchResult, first: BenchResult) -> list[Badge]:
    badges = [noise_badge(result)]
    if not result.device.is_same_device(first.device):
        badges.append(OTHER_DEVICE_BADGE)
    if result.interrupted:
        badges.append(Badge("interrupted", "warn"))
    if any(row.rounds and not row.steady for row in result.rows):
        badges.append(Badge("not steady", "warn"))
    if result.failed_rows:
        badges.append(Badge("gate failed", "bad"))
    badges += [
        Badge(f"{check.limit} {check.outcome}", OUTCOME_TONES[check.outcome])
        for check in result.limit_checks
    ]
    return badges


def _speedup_phrase(result: BenchResult, pair: RowComparison) -> str:
    baseline = result.get_row(pair.baseline)
    interval = format_interval(pair.speedup.low, pair.speedup.high, 2)
    explanations = {
        "inconclusive": "inconclusive, the interval contains 1",
        "noisy": "undecided, the device was too noisy",
    }
    verdict = explanations.get(pair.verdict, pair.verdict)
    return f"{pair.speedup.ratio:.2f} {interval} times as fast as {baseline.name} ({verdict})"


def _fastest_pytorch_sentences(result: BenchResult) -> list[str]:
    """Compare the recommended row with the fastest PyTorch baseline, unless that is eager mode."""
    recommendation = result.recommendation
    if recommendation is None:
        return []
    pairs = [
        pair
        for pair in result.comparisons
        if pair.candidate == recommendation.latency.row
        and pair.earlier_row is None
        and result.get_row(pair.baseline).runtime == "pytorch"
    ]
    if not pairs:
        return []
    fastest = min(pairs, key=lambda pair: result.get_row(pair.baseline).p50_ms or 0.0)
    row = result.get_row(fastest.baseline)
    if row.variant == EAGER_VARIANT:
        return []
    p50 = format_milliseconds(row.p50_ms)
    return [
        f"Fastest PyTorch baseline: {row.variant}, p50 {p50} ms; "
        f"the recommended row is {_speedup_phrase(result, fastest)}."
    ]


def _alternative_sentences(result: BenchResult) -> list[str]:
    recommendation = result.recommendation
    if recommendation is None:
        return []
    names = row_names(result.rows)
    latency, throughput = recommendation.latency, recommendation.throughput
    sentences = []
    if throughput.row != latency.row:
        rate = format_rate(throughput.images_per_second)
        sentences.append(f"Highest throughput: {names[throughput.row]}, {rate} images/s.")
    if latency.as_fast:
        rows = join_words([names[row] for row in latency.as_fast])
        sentences.append(f"Not significantly slower: {rows}.")
    return sentences


def _failure_sentences(result: BenchResult) -> list[str]:
    return [
        f"{name} was not timed, it failed the gate: {reason}."
        for name, reason in result.list_refusals()
    ]
