"""The page's first two sections: a sentence for each result, and one table over all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    is_same_device,
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
    """What each result says, with the doubts that belong to it."""
    cards = [
        _result_card(title, result, results[0])
        for title, result in zip(result_titles(results), results, strict=True)
    ]
    return Section("summary", "Summary", (grid("cards", cards),))


def summary_sentence(result: BenchResult) -> str:
    """The result in one sentence: what, where, which configuration, how fast."""
    chosen = result.recommendation
    if chosen is None:
        reason = "no row passed its gate" if result.failed_rows else "no ONNX Runtime row was timed"
        return f"{model_name(result)} on {device_and_host(result.device)}: {reason}, so nothing is recommended."
    row = result.get_row(chosen.latency.row)
    spread = row.p50_interval_ms
    told = "" if spread is None else f" {format_interval(*spread, _digits(spread[0]))}"
    pair = find_baseline_comparison(result, row.id)
    answers = f"{full_row_name(row)} answers in {format_milliseconds(row.percentile_ms(50))} ms (p50{told}, scope {row.scope})"
    text = f"{model_name(result)} on {device_and_host(result.device)}: {answers}"
    return (
        f"{text}, {_speedup_phrase(result, pair)}."
        if pair
        else f"{text}; no baseline was measured beside it."
    )


def table_section(results: Sequence[BenchResult]) -> Section:
    """Every row of every result; those that may be compared stand together."""
    groups: dict[tuple[str, str, str], list[ResultRowPair]] = {}
    for result in results:
        for row in result.rows:
            groups.setdefault((model_key(result, row), row.scope, input_shape(row)), []).append(
                (result, row)
            )
    every = [entry for entries in groups.values() for entry in entries]
    columns = [(column, cell) for column, cell, wanted in _columns() if wanted(every)]
    body = []
    for number, entries in enumerate(groups.values(), 1):
        title = _group_heading(number, entries)
        for device, result in zip(result_titles(results), results, strict=True):
            rows = [row for own, row in entries if own is result]
            if rows:
                cells = (
                    TableRow(
                        tuple(cell((result, row)) for _, cell in columns),
                        "dim" if row.has_failed_gate else "",
                    )
                    for row in rows
                )
                badges = (
                    noise_badge(result),
                    *(() if is_same_device(result, results[0]) else (OTHER_DEVICE_BADGE,)),
                )
                body.append(RowGroup(tuple(cells), title, device, badges))
                title = ""
    blocks = (
        []
        if len(groups) == 1
        else [
            paragraph(
                "Rows are comparable within a group only: the groups differ in model, scope or input."
            )
        ]
    )
    if any(not is_same_device(result, results[0]) for result in results):
        blocks.append(
            paragraph(
                "Rows of different devices compare devices, not runtimes; a speed-up is always within one device."
            )
        )
    blocks.append(table("All configurations measured", [column for column, _ in columns], body))
    blocks.append(paragraph(" ".join(_table_notes(every)), "note"))
    return Section("table", "All results", tuple(blocks))


def _result_card(title: str, result: BenchResult, first: BenchResult) -> Markup:
    chosen = result.recommendation
    keys: list[tuple[str, Cell]] = []
    if chosen is not None:
        row = result.get_row(chosen.latency.row)
        spread = row.p50_interval_ms
        small = "" if spread is None else format_interval(*spread, _digits(spread[0]))
        keys.append(
            ("p50, one call", Cell(f"{format_milliseconds(row.percentile_ms(50))} ms", small=small))
        )
        pair = find_baseline_comparison(result, row.id)
        if pair is not None:
            baseline = result.get_row(pair.baseline)
            keys.append((f"against {baseline.runtime} {baseline.variant}", speedup_cell(pair)))
        keys.append(("most images/s", Cell(format_rate(chosen.throughput.images_per_second))))
    badges = [noise_badge(result)]
    badges += [] if is_same_device(result, first) else [OTHER_DEVICE_BADGE]
    badges += [Badge("interrupted", "warn")] if result.interrupted else []
    badges += (
        [Badge("not steady", "warn")]
        if any(row.rounds and not row.steady for row in result.rows)
        else []
    )
    badges += [Badge("gate failed", "bad")] if result.failed_rows else []
    badges += [
        Badge(f"{judged.limit} {judged.outcome}", OUTCOME_TONES[judged.outcome])
        for judged in result.limit_checks
    ]
    blocks = [paragraph("", badges=badges), paragraph(summary_sentence(result))]
    doubts = [
        *_fastest_pytorch_sentences(result),
        *_alternative_sentences(result),
        *(f"Noise: {reason}." for reason in result.noise.reasons),
        *_failure_sentences(result),
    ]
    return card(title, keys, [*blocks, *([bullets(doubts)] if doubts else [])])


def _speedup_phrase(result: BenchResult, pair: RowComparison) -> str:
    baseline = result.get_row(pair.baseline)
    against = f"{baseline.runtime} {baseline.variant}"
    ratio = f"{pair.speedup.ratio:.2f} {format_interval(pair.speedup.low, pair.speedup.high, 2)} times as fast as {against}"
    undecided = {
        "inconclusive": "inconclusive, the interval holds 1",
        "noisy": "not decided, the device was too noisy",
    }
    return f"{ratio} ({undecided.get(pair.verdict, pair.verdict)})"


def _fastest_pytorch_sentences(result: BenchResult) -> list[str]:
    """Hold the recommended row against the fastest PyTorch row of its cell, where that isn't eager already."""
    chosen = result.recommendation
    if chosen is None:
        return []
    pairs = [
        pair
        for pair in result.comparisons
        if pair.candidate == chosen.latency.row and pair.earlier_row is None
    ]
    pairs = [pair for pair in pairs if result.get_row(pair.baseline).runtime == "pytorch"]
    if not pairs:
        return []
    fastest = min(pairs, key=lambda pair: result.get_row(pair.baseline).percentile_ms(50) or 0.0)
    row = result.get_row(fastest.baseline)
    if row.variant == EAGER_VARIANT:
        return []
    p50 = format_milliseconds(row.percentile_ms(50))
    return [
        f"Fastest PyTorch baseline: {row.variant}, p50 {p50} ms; the recommended row is {_speedup_phrase(result, fastest)}."
    ]


def _alternative_sentences(result: BenchResult) -> list[str]:
    chosen, names = result.recommendation, row_names(result.rows)
    if chosen is None:
        return []
    found = []
    if chosen.throughput.row != chosen.latency.row:
        found.append(
            f"Most images a second: {names[chosen.throughput.row]}, {format_rate(chosen.throughput.images_per_second)} images/s."
        )
    if chosen.latency.as_fast:
        found.append(
            f"Not shown to be slower: {join_words([names[row] for row in chosen.latency.as_fast])}."
        )
    return found


def _failure_sentences(result: BenchResult) -> list[str]:
    seen = {
        f"{row.runtime} {row.variant}": str(row.gate.get("reason", "no reason is told"))
        for row in result.failed_rows
    }
    return [
        f"{name} was not timed, its reference images did not pass: {reason}."
        for name, reason in seen.items()
    ]


def _group_heading(number: int, entries: Sequence[ResultRowPair]) -> str:
    result, row = entries[0]
    models = dict.fromkeys(model_name(other) for other, _ in entries)
    identity = (
        f"run {result.model['run_id']}"
        if result.model.get("run_id")
        else f"file {row.file_sha256[:12]}"
    )
    return f"Group {number}: {join_words(list(models))} ({identity}), scope {row.scope}, input {input_shape(row) or 'not told'}"


def _columns() -> list[
    tuple[Column, Callable[[ResultRowPair], Cell], Callable[[Sequence[ResultRowPair]], bool]]
]:
    def always(_: Sequence[ResultRowPair]) -> bool:
        return True

    return [
        (Column("configuration"), lambda entry: _configuration_cell(entry[1]), always),
        (
            Column("p50 ms", "number", "median latency and its 95% interval"),
            lambda entry: _p50_cell(entry[1]),
            always,
        ),
        (Column("p90 ms", "number"), lambda entry: _percentile_cell(entry[1], 90), always),
        (Column("p99 ms", "number"), lambda entry: _percentile_cell(entry[1], 99), always),
        (
            Column("images/s", "number"),
            lambda entry: Cell(format_rate(entry[1].images_per_second)),
            always,
        ),
        (
            Column("speed-up", "short", "baseline p50 / p50 with its 95% interval and verdict"),
            _row_speedup_cell,
            always,
        ),
        (
            Column(
                "cold ms",
                "number",
                "import, session and first answer of a fresh process, files in the page cache",
            ),
            lambda entry: _cold_start_cell(entry[1]),
            always,
        ),
        (
            Column("peak MiB", "number", "largest resident memory of the process"),
            lambda entry: _peak_memory_cell(entry[1]),
            always,
        ),
        (
            Column("growth MiB", "number", "resident memory gained during a block, after warm-up"),
            lambda entry: Cell(format_mib(entry[1].memory_growth_bytes, 1)),
            lambda every: any(row.memory_growth_bytes is not None for _, row in every),
        ),
        (
            Column("file MB", "number"),
            lambda entry: Cell(f"{entry[1].file_bytes / 1e6:.1f}"),
            always,
        ),
        (
            Column("energy mJ/image", "short", "by the counter named, idle power included"),
            lambda entry: _energy_cell(entry[1]),
            lambda every: any(row.summarize_energy_mj() for _, row in every),
        ),
        (
            Column(
                "GPU",
                "short",
                "right after the blocks: lowest and highest SM clock, otherwise the largest value of all rounds",
            ),
            lambda entry: Cell(
                format_gpu_state(entry[1].summarize_gpu())
                if entry[1].summarize_gpu()
                else MISSING_VALUE
            ),
            lambda every: any(row.summarize_gpu() for _, row in every),
        ),
        (
            Column("reference images", "short", "the gate before the clock"),
            lambda entry: _gate_cell(entry[1]),
            always,
        ),
    ]


def _p50_cell(row: BenchRow) -> Cell:
    spread = row.p50_interval_ms
    return Cell(
        format_milliseconds(row.percentile_ms(50)),
        small="" if spread is None else format_interval(*spread, _digits(spread[0])),
    )


def _percentile_cell(row: BenchRow, percent: int) -> Cell:
    value = row.percentile_ms(percent)
    withheld = (
        f"withheld: {len(row.latencies_ns)} runs do not support a p{percent}"
        if row.rounds
        else "not timed"
    )
    return Cell(format_milliseconds(value), tooltip=withheld if value is None else "")


def _configuration_cell(row: BenchRow) -> Cell:
    parts = [row.provider, f"batch {row.batch}", pluralize(row.threads, "thread")]
    if row.rate is not None:
        parts.append(f"{row.rate:g} arrivals/s, {row.waiting_share:.0%} of them waited")
    return Cell(f"{row.runtime} {row.variant}", small=", ".join(parts))


def _row_speedup_cell(entry: ResultRowPair) -> Cell:
    result, row = entry
    if row.has_failed_gate:
        return Cell("", badges=(Badge("failed", "bad"),))
    pair = find_baseline_comparison(result, row.id)
    if pair is not None:
        return speedup_cell(pair)
    baseline = any(
        pair.baseline == row.id and pair.earlier_row is None for pair in result.comparisons
    )
    return Cell("1", small="baseline") if baseline else Cell(MISSING_VALUE, tooltip="not compared")


def _cold_start_cell(row: BenchRow) -> Cell:
    cold = row.summarize_cold_starts()
    return (
        Cell(f"{cold['total_ms']:.0f}", small=f"{cold['session_ms']:.0f} session")
        if cold
        else Cell(MISSING_VALUE, tooltip="not measured")
    )


def _peak_memory_cell(row: BenchRow) -> Cell:
    return Cell(format_mib(row.summarize_cold_starts().get("peak_memory_bytes")))


def _energy_cell(row: BenchRow) -> Cell:
    told = [f"{value:.1f} ({source})" for source, value in row.summarize_energy_mj().items()]
    return Cell("; ".join(told) or MISSING_VALUE)


def _gate_cell(row: BenchRow) -> Cell:
    if row.has_failed_gate:
        return Cell("", badges=(Badge("failed", "bad"),))
    if not row.gate.get("checked"):
        return Cell("", badges=(Badge("not checked", "warn"),))
    difference = row.gate.get("max_logit_difference")
    small = "" if difference is None else f"|Δlogit| {difference:.1g}"
    return Cell(
        f"{row.gate.get('top1_agreement', MISSING_VALUE)}/{row.gate.get('images', MISSING_VALUE)} agree",
        small=small,
    )


def _table_notes(every: Sequence[ResultRowPair]) -> list[str]:
    withheld = [
        percent
        for percent in (90, 99)
        if any(row.rounds and row.percentile_ms(percent) is None for _, row in every)
    ]
    notes = ["Intervals are 95%."]
    if any(row.rate is not None for _, row in every):
        notes.append(
            "Rows without arrivals/s are a single stream, in which a call follows on the one before."
        )
    if withheld:
        told = join_words(
            [f"p{percent} needs {PERCENTILE_SUPPORT[percent]} runs" for percent in withheld]
        )
        notes.append(
            f"{MISSING_VALUE} under p90 or p99: withheld, too few runs support it ({told})."
        )
    notes.append(f"{MISSING_VALUE} elsewhere: not measured, or the device does not tell.")
    if not any(row.summarize_energy_mj() for _, row in every):
        notes.append("No energy counter was read.")
    runs = [len(row.latencies_ns) for _, row in every if row.rounds]
    if runs:
        told = f"{runs[0]:,}" if min(runs) == max(runs) else f"{min(runs):,} to {max(runs):,}"
        notes.append(f"Each row rests on {told} runs; none is left out.")
    return notes


def _digits(value: float) -> int:
    return 3 if value < 1 else 2 if value < 100 else 0
