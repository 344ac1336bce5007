"""Summary and table sections of the benchmark report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from edgetl.core.artifacts.bench import EAGER_VARIANT, BenchResult
from edgetl.core.artifacts.bench_rows import BenchRow
from edgetl.core.artifacts.comparison import RowComparison
from edgetl.core.formatting import MISSING_VALUE, format_gpu_state, format_milliseconds, pluralize
from edgetl.core.statistics import PERCENTILE_SUPPORT
from edgetl.report.html.blocks import (
    Badge,
    Cell,
    Column,
    RowGroup,
    Section,
    TableRow,
    bullets,
    card,
    grid,
    paragraph,
    table,
)
from edgetl.report.html.text import (
    OUTCOME_TONES,
    device_and_host,
    find_baseline_comparison,
    format_interval,
    format_mib,
    format_rate,
    full_row_name,
    input_shape,
    join_words,
    model_key,
    model_name,
    noise_badge,
    result_titles,
    row_names,
    speedup_cell,
)

ResultRowPair = tuple[BenchResult, BenchRow]
OTHER_DEVICE_BADGE = Badge("another device")


def summary_section(results: Sequence[BenchResult]) -> Section:
    """Build a card for each result: the recommended configuration, its speed-up and caveats."""
    cards = [
        _result_card(title, result, results[0])
        for title, result in zip(result_titles(results), results, strict=True)
    ]
    return Section("summary", "Summary", (grid("cards", cards),))


def summary_sentence(result: BenchResult) -> str:
    """Summarize the result in one sentence: model, device, recommended configuration, latency."""
    subject = f"{model_name(result)} on {device_and_host(result.device)}"
    recommendation = result.recommendation
    if recommendation is None:
        reason = "no ONNX Runtime row was timed"
        if result.failed_rows:
            reason = "no row passed the gate"
        return f"{subject}: {reason}, so nothing is recommended."
    row = result.get_row(recommendation.latency.row)
    latency = f"{format_milliseconds(row.p50_ms)} ms"
    p50 = f"p50 {_format_p50_interval(row)}".rstrip()
    text = f"{subject}: {full_row_name(row)} takes {latency} ({p50}, scope {row.scope})"
    pair = find_baseline_comparison(result, row.id)
    if pair is None:
        return f"{text}; no baseline was measured in the same run."
    return f"{text}, {_speedup_phrase(result, pair)}."


def table_section(results: Sequence[BenchResult]) -> Section:
    """Build the table of all rows, grouped so that rows within a group are comparable."""
    groups: dict[tuple[str, str, str], list[ResultRowPair]] = {}
    for result in results:
        for row in result.rows:
            key = (model_key(result, row), row.scope, input_shape(row))
            groups.setdefault(key, []).append((result, row))
    entries = [entry for group in groups.values() for entry in group]
    columns = [column for column in _columns() if column.is_visible(entries)]
    table_rows = [
        row_group
        for number, group in enumerate(groups.values(), 1)
        for row_group in _row_groups(_group_heading(number, group), group, results, columns)
    ]
    blocks = []
    if len(groups) > 1:
        blocks.append(
            paragraph(
                "Rows are comparable within a group only: "
                "the groups differ in model, scope or input."
            )
        )
    if any(not result.device.is_same_device(results[0].device) for result in results):
        blocks.append(
            paragraph(
                "Rows of different devices compare devices, not runtimes. "
                "A speed-up is always measured on one device."
            )
        )
    headers = [column.header for column in columns]
    blocks.append(table("All measured configurations", headers, table_rows))
    blocks.append(paragraph(" ".join(_table_notes(entries)), "note"))
    return Section("table", "All results", tuple(blocks))


def _row_groups(
    title: str,
    group: Sequence[ResultRowPair],
    results: Sequence[BenchResult],
    columns: Sequence[_EntryColumn],
) -> Iterator[RowGroup]:
    """Yield the group's rows, one `RowGroup` per result; only the first has the title."""
    for subheading, result in zip(result_titles(results), results, strict=True):
        entries = [entry for entry in group if entry[0] is result]
        if not entries:
            continue
        rows = [
            TableRow(
                tuple(column.cell(entry) for column in columns),
                "dim" if entry[1].has_failed_gate else "",
            )
            for entry in entries
        ]
        badges = [noise_badge(result)]
        if not result.device.is_same_device(results[0].device):
            badges.append(OTHER_DEVICE_BADGE)
        yield RowGroup(tuple(rows), title, subheading, tuple(badges))
        title = ""


def _result_card(title: str, result: BenchResult, first: BenchResult) -> Markup:
    blocks = [
        paragraph("", badges=_result_badges(result, first)),
        paragraph(summary_sentence(result)),
    ]
    caveats = [
        *_fastest_pytorch_sentences(result),
        *_alternative_sentences(result),
        *(f"Noise: {reason}." for reason in result.noise.reasons),
        *_failure_sentences(result),
    ]
    if caveats:
        blocks.append(bullets(caveats))
    return card(title, _key_facts(result), blocks)


def _key_facts(result: BenchResult) -> list[tuple[str, Cell]]:
    recommendation = result.recommendation
    if recommendation is None:
        return []
    row = result.get_row(recommendation.latency.row)
    facts = [("p50, one inference", _p50_cell(row, unit=" ms"))]
    pair = find_baseline_comparison(result, row.id)
    if pair is not None:
        baseline = result.get_row(pair.baseline)
        facts.append((f"against {baseline.runtime} {baseline.variant}", speedup_cell(pair)))
    facts.append(
        ("highest images/s", Cell(format_rate(recommendation.throughput.images_per_second)))
    )
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
    return (
        f"{pair.speedup.ratio:.2f} {interval} times as fast "
        f"as {baseline.runtime} {baseline.variant} ({verdict})"
    )


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
    reasons = {
        f"{row.runtime} {row.variant}": row.gate.reason or "no reason recorded"
        for row in result.failed_rows
    }
    return [
        f"{name} was not timed, it failed the gate: {reason}." for name, reason in reasons.items()
    ]


def _group_heading(number: int, group: Sequence[ResultRowPair]) -> str:
    first_result, first_row = group[0]
    models = join_words(list(dict.fromkeys(model_name(result) for result, _ in group)))
    identity = f"file {first_row.file_sha256[:12]}"
    if first_result.model.run_id:
        identity = f"run {first_result.model.run_id}"
    shape = input_shape(first_row) or "unknown"
    return f"Group {number}: {models} ({identity}), scope {first_row.scope}, input {shape}"


def _is_always_visible(_: Sequence[ResultRowPair]) -> bool:
    return True


@dataclass(frozen=True)
class _EntryColumn:
    """A column of the table of results."""

    header: Column
    cell: Callable[[ResultRowPair], Cell]
    is_visible: Callable[[Sequence[ResultRowPair]], bool] = _is_always_visible


def _columns() -> list[_EntryColumn]:
    return [
        _EntryColumn(Column("configuration"), lambda entry: _configuration_cell(entry[1])),
        _EntryColumn(
            Column("p50 ms", "number", "median latency with its 95% interval"),
            lambda entry: _p50_cell(entry[1]),
        ),
        _EntryColumn(Column("p90 ms", "number"), lambda entry: _percentile_cell(entry[1], 90)),
        _EntryColumn(Column("p99 ms", "number"), lambda entry: _percentile_cell(entry[1], 99)),
        _EntryColumn(
            Column("images/s", "number"),
            lambda entry: Cell(format_rate(entry[1].images_per_second)),
        ),
        _EntryColumn(
            Column("speed-up", "short", "baseline p50 / p50 with its 95% interval and verdict"),
            _row_speedup_cell,
        ),
        _EntryColumn(
            Column(
                "cold ms",
                "number",
                "import, session creation and first inference in a new process, files in the page cache",
            ),
            lambda entry: _cold_start_cell(entry[1]),
        ),
        _EntryColumn(
            Column("peak MiB", "number", "peak resident memory of the process"),
            lambda entry: _peak_memory_cell(entry[1]),
        ),
        _EntryColumn(
            Column("growth MiB", "number", "growth of resident memory in a block, after warm-up"),
            lambda entry: Cell(format_mib(entry[1].memory_growth_bytes, 1)),
            lambda entries: any(row.memory_growth_bytes is not None for _, row in entries),
        ),
        _EntryColumn(
            Column("file MB", "number"), lambda entry: Cell(f"{entry[1].file_bytes / 1e6:.1f}")
        ),
        _EntryColumn(
            Column("energy mJ/image", "short", "by energy counter, including idle power"),
            lambda entry: _energy_cell(entry[1]),
            lambda entries: any(row.energy_mj for _, row in entries),
        ),
        _EntryColumn(
            Column(
                "GPU",
                "short",
                "read right after each block: range of the SM clock; otherwise the maximum over all rounds",
            ),
            lambda entry: _gpu_cell(entry[1]),
            lambda entries: any(row.gpu is not None for _, row in entries),
        ),
        _EntryColumn(
            Column("golden images", "short", "gate: the check on the golden images before timing"),
            lambda entry: _gate_cell(entry[1]),
        ),
    ]


def _format_p50_interval(row: BenchRow) -> str:
    interval = row.p50_interval_ms
    return "" if interval is None else format_interval(*interval, _decimals(interval[0]))


def _p50_cell(row: BenchRow, unit: str = "") -> Cell:
    p50 = format_milliseconds(row.p50_ms)
    return Cell(f"{p50}{unit}", small=_format_p50_interval(row))


def _percentile_cell(row: BenchRow, percent: int) -> Cell:
    value = row.percentile_ms(percent)
    tooltip = ""
    if value is None:
        tooltip = "not timed"
        if row.rounds:
            tooltip = f"withheld: {len(row.latencies_ns)} runs are too few for p{percent}"
    return Cell(format_milliseconds(value), tooltip=tooltip)


def _configuration_cell(row: BenchRow) -> Cell:
    parts = [row.provider, f"batch {row.batch}", pluralize(row.threads, "thread")]
    if row.rate is not None:
        parts.append(f"{row.rate:g} arrivals/s, {row.waiting_share:.0%} of them queued")
    return Cell(f"{row.runtime} {row.variant}", small=", ".join(parts))


def _row_speedup_cell(entry: ResultRowPair) -> Cell:
    result, row = entry
    if row.has_failed_gate:
        return Cell("", badges=(Badge("failed", "bad"),))
    pair = find_baseline_comparison(result, row.id)
    if pair is not None:
        return speedup_cell(pair)
    if any(pair.baseline == row.id and pair.earlier_row is None for pair in result.comparisons):
        return Cell("1", small="baseline")
    return Cell(MISSING_VALUE, tooltip="not compared")


def _cold_start_cell(row: BenchRow) -> Cell:
    cold = row.cold
    if cold is None:
        return Cell(MISSING_VALUE, tooltip="not measured")
    return Cell(f"{cold.total_ms:.0f}", small=f"{cold.session_ms:.0f} session")


def _peak_memory_cell(row: BenchRow) -> Cell:
    return Cell(format_mib(None if row.cold is None else row.cold.peak_memory_bytes))


def _energy_cell(row: BenchRow) -> Cell:
    values = [f"{value:.1f} ({source})" for source, value in row.energy_mj.items()]
    return Cell("; ".join(values) or MISSING_VALUE)


def _gpu_cell(row: BenchRow) -> Cell:
    return Cell(MISSING_VALUE if row.gpu is None else format_gpu_state(row.gpu))


def _gate_cell(row: BenchRow) -> Cell:
    gate = row.gate
    if row.has_failed_gate:
        return Cell("", badges=(Badge("failed", "bad"),))
    if not gate.checked:
        return Cell("", badges=(Badge("not checked", "warn"),))
    agreed = MISSING_VALUE if gate.top1_agreement is None else gate.top1_agreement
    images = MISSING_VALUE if gate.images is None else gate.images
    difference = gate.max_logit_difference
    return Cell(
        f"{agreed}/{images} agree", small="" if difference is None else f"|Δlogit| {difference:.1g}"
    )


def _table_notes(entries: Sequence[ResultRowPair]) -> list[str]:
    timed = [row for _, row in entries if row.rounds]
    notes = ["Intervals are 95%."]
    if any(row.rate is not None for _, row in entries):
        notes.append(
            "Rows without arrivals/s are single-stream: each inference starts when the previous ends."
        )
    withheld = [
        percent for percent in (90, 99) if any(row.percentile_ms(percent) is None for row in timed)
    ]
    if withheld:
        needed = [f"p{percent} needs {PERCENTILE_SUPPORT[percent]} runs" for percent in withheld]
        notes.append(
            f"{MISSING_VALUE} under p90 or p99: withheld, too few runs ({join_words(needed)})."
        )
    notes.append(f"{MISSING_VALUE} elsewhere: not measured, or not reported by the device.")
    if not any(row.energy_mj for _, row in entries):
        notes.append("No energy counter was read.")
    runs = [len(row.latencies_ns) for row in timed]
    if runs:
        count = f"{runs[0]:,}"
        if min(runs) != max(runs):
            count = f"{min(runs):,} to {max(runs):,}"
        notes.append(f"Each row has {count} runs; no run was excluded.")
    return notes


def _decimals(value: float) -> int:
    if value < 1:
        return 3
    return 2 if value < 100 else 0
