"""The page over one or more bench results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from edgetl.core.artifacts.bench import BenchResult
from edgetl.core.artifacts.bench_rows import BenchRow
from edgetl.core.formatting import (
    MISSING_VALUE,
    PROFILE_CLOCK_DESCRIPTIONS,
    format_milliseconds,
    pluralize,
)
from edgetl.report.bench.provenance import devices_section, method_section
from edgetl.report.bench.summary import summary_section, table_section
from edgetl.report.charts.latency import draw_distributions, draw_rounds, draw_stages
from edgetl.report.charts.svg import FILL_COLORS
from edgetl.report.charts.sweeps import draw_sustained, draw_sweeps, select_sweep_rows
from edgetl.report.html.blocks import (
    Badge,
    Cell,
    Column,
    Section,
    TableRow,
    bullets,
    definition_list,
    details,
    grid,
    heading,
    paragraph,
    render_page,
    table,
)
from edgetl.report.html.text import (
    device_and_host,
    format_interval,
    format_mib,
    full_row_name,
    join_words,
    model_name,
    result_titles,
    row_names,
)

_MAX_LISTED_OPERATORS = 12
"""Operators of a profile that are listed by name; the rest is added up."""


def render_bench_report(results: Sequence[BenchResult]) -> str:
    """One self-contained HTML page over all results; the same results give the same page."""
    devices = list(dict.fromkeys(device_and_host(result.device) for result in results))
    models = list(dict.fromkeys(model_name(result) for result in results))
    lead = f"{pluralize(len(results), 'result')}, {pluralize(len(devices), 'device')}: {join_words(models)} on {join_words(devices)}."
    return render_page(f"Latency of {join_words(models)}", lead, bench_sections(results))


def bench_sections(results: Sequence[BenchResult]) -> list[Section]:
    """The page's sections, for pages that show more than bench results; those without content have no blocks."""
    return [
        summary_section(results),
        table_section(results),
        _section_by_result("distributions", "Distributions", results, _distribution_blocks),
        _section_by_result("rounds", "Rounds", results, _round_blocks),
        _section_by_result("stages", "Stages", results, _stage_blocks),
        _section_by_result("operators", "Operators", results, _operator_blocks),
        _section_by_result(
            "sweeps",
            "Sweeps",
            results,
            lambda result: _figure_grid(draw_sweeps(select_sweep_rows(result.rows))),
        ),
        _section_by_result("sustained", "Latency over time", results, _sustained_blocks),
        devices_section(results),
        method_section(results),
    ]


def _section_by_result(
    anchor: str,
    title: str,
    results: Sequence[BenchResult],
    made: Callable[[BenchResult], list[Markup]],
) -> Section:
    parts = [
        (name, made(result)) for name, result in zip(result_titles(results), results, strict=True)
    ]
    blocks: list[Markup] = []
    for name, part in parts:
        if part:
            blocks += [*([heading(name)] if len(results) > 1 else []), *part]
    return Section(anchor, title, tuple(blocks))


def _figure_grid(drawn: Sequence[Markup]) -> list[Markup]:
    return [grid("figures", drawn)] if drawn else []


def _group_by_scope(result: BenchResult) -> dict[str, list[BenchRow]]:
    """Timed rows by scope: what is drawn on one axis."""
    found: dict[str, list[BenchRow]] = {}
    for row in result.rows:
        if row.rounds:
            found.setdefault(f"Scope {row.scope}", []).append(row)
    return found


def _distribution_blocks(result: BenchResult) -> list[Markup]:
    return _figure_grid(
        [
            drawn
            for title, rows in _group_by_scope(result).items()
            for drawn in draw_distributions(title, rows, row_names(rows))
        ]
    )


def _round_blocks(result: BenchResult) -> list[Markup]:
    scopes = {
        title: rows
        for title, rows in _group_by_scope(result).items()
        if max(len(row.rounds) for row in rows) > 1
    }
    drawn = [draw_rounds(title, rows, row_names(rows)) for title, rows in scopes.items()]
    timed = [row for rows in scopes.values() for row in rows]
    if not timed:
        return []
    names, count = row_names(timed), max(len(row.rounds) for row in timed)
    body = [
        TableRow(
            (
                Cell(names[row.id]),
                *(Cell(format_milliseconds(value / 1e6)) for value in row.round_medians_ns),
                *[Cell(MISSING_VALUE)] * (count - len(row.rounds)),
            )
        )
        for row in timed
    ]
    numbers = table(
        "p50 of each round, ms",
        [Column("row"), *(Column(str(number), "number") for number in range(1, count + 1))],
        body,
    )
    unsteady = [names[row.id] for row in timed if not row.steady]
    doubt = [
        paragraph(
            f"Warm-up was cut off before it was steady: {join_words(unsteady)}.",
            badges=[Badge("not steady", "warn")],
        )
    ]
    return [
        *_figure_grid(drawn),
        *(doubt if unsteady else []),
        details("The medians as a table", [numbers]),
    ]


def _stage_blocks(result: BenchResult) -> list[Markup]:
    blocks: list[Markup] = []
    drawn, body = [], []
    staged = {
        title: [row for row in rows if row.summarize_stages_ms()]
        for title, rows in _group_by_scope(result).items()
    }
    stages = list(
        dict.fromkeys(
            stage for rows in staged.values() for row in rows for stage in row.summarize_stages_ms()
        )
    )
    # Of the stages of all scopes the longest list tells the order in which they follow on each other.
    longest = max(
        ([*row.summarize_stages_ms()] for rows in staged.values() for row in rows),
        key=len,
        default=[],
    )
    stages = list(dict.fromkeys([*longest, *stages]))
    colours = {stage: FILL_COLORS[index % len(FILL_COLORS)] for index, stage in enumerate(stages)}
    every = row_names([row for rows in staged.values() for row in rows])
    for title, rows in staged.items():
        if rows:
            drawn += draw_stages(title, rows, row_names(rows), colours)
        for row in rows:
            times = row.summarize_stages_ms()
            total = sum(times.values()) or 1.0
            cells = [
                Cell(
                    format_milliseconds(times.get(stage)),
                    small=f"{times[stage] / total:.0%}" if stage in times else "",
                )
                for stage in stages
            ]
            body.append(TableRow((Cell(every[row.id]), *cells)))
    if body:
        blocks = [
            *_figure_grid(drawn),
            table(
                "Median of each stage, ms",
                [Column("row"), *(Column(stage, "number") for stage in stages)],
                body,
            ),
        ]
    return blocks


def _operator_blocks(result: BenchResult) -> list[Markup]:
    by_id = {row.id: row for row in result.rows}
    blocks: list[Markup] = []
    for row_id, profile in result.profiles.items():
        operators = sorted(
            profile.get("operators", []), key=lambda operator: -float(operator.get("share") or 0)
        )
        if not operators:
            continue
        name = (
            f"{full_row_name(by_id[row_id])}, scope {by_id[row_id].scope}"
            if row_id in by_id
            else row_id
        )
        columns = [
            Column("operator", "short"),
            Column("share", "short"),
            Column("nodes", "number"),
            Column("µs", "number"),
            Column("provider", "short"),
        ]
        body = [_operator_row(operator) for operator in operators[:_MAX_LISTED_OPERATORS]]
        if operators[_MAX_LISTED_OPERATORS:]:
            body.append(_other_operators_row(operators[_MAX_LISTED_OPERATORS:]))
        runs = f" in {profile['runs']} profiled runs" if profile.get("runs") is not None else ""
        clock = PROFILE_CLOCK_DESCRIPTIONS.get(str(profile.get("clock")), "")
        measured = f" Times are {clock}." if clock else ""
        note = (
            f"{name}{runs}.{measured} Profiling itself takes time: the shares count, not the sums."
        )
        blocks += [
            paragraph(note),
            table(
                "Time by kernel" if profile.get("rows") == "kernels" else "Time by operator",
                columns,
                body,
            ),
        ]
    return blocks


def _operator_row(operator: Mapping[str, Any]) -> TableRow:
    share, took = operator.get("share"), operator.get("us")
    return TableRow(
        (
            Cell(str(operator.get("operator", MISSING_VALUE))),
            Cell(MISSING_VALUE)
            if share is None
            else Cell(f"{share:.1%}", bar_share=min(1.0, max(0.0, float(share)))),
            Cell(str(operator.get("nodes", MISSING_VALUE))),
            Cell(MISSING_VALUE if took is None else f"{took:,.1f}"),
            Cell(str(operator.get("provider") or MISSING_VALUE)),
        )
    )


def _other_operators_row(operators: Sequence[Mapping[str, Any]]) -> TableRow:
    sums = {
        name: sum(float(operator.get(name) or 0) for operator in operators)
        for name in ("nodes", "us", "share")
    }
    rest = {
        "operator": f"{len(operators)} others",
        "nodes": int(sums["nodes"]),
        "us": sums["us"],
        "share": sums["share"],
    }
    return TableRow(_operator_row(rest).cells, "dim")


def _sustained_blocks(result: BenchResult) -> list[Markup]:
    run = result.sustained
    if run is None or not run.windows:
        return []
    row = next((row for row in result.rows if row.id == run.row), None)
    settled, drift, grown = run.settled_index, run.drift, run.memory_growth_bytes
    after = (
        Cell("", badges=(Badge("never settled", "warn"),))
        if settled is None
        else Cell(f"after {run.windows[settled].start_s:.0f} s")
    )
    verdict = Cell(MISSING_VALUE, tooltip="fewer than eight windows")
    if drift is not None:
        tone = Badge(drift.verdict, "good" if drift.verdict == "steady" else "warn")
        verdict = Cell(
            f"last quarter / first quarter {drift.ratio:.3f} {format_interval(drift.low, drift.high, 3)}",
            badges=(tone,),
        )
    runs = sum(len(window.latencies_ns) for window in run.windows)
    pairs = [
        (
            "configuration",
            Cell(run.row if row is None else f"{full_row_name(row)}, scope {row.scope}"),
        ),
        (
            "length",
            Cell(
                f"{run.asked_s:.0f} s asked for, {pluralize(len(run.windows), 'window')}, {runs:,} runs"
            ),
        ),
        ("settled", after),
        *(
            (
                f"p{percent} of all runs" if settled is None else f"steady p{percent}",
                Cell(f"{format_milliseconds(run.steady_percentile_ms(percent))} ms"),
            )
            for percent in (50, 90, 99)
        ),
        ("drift of p50", verdict),
        (
            "memory growth",
            Cell(MISSING_VALUE, tooltip="not told")
            if grown is None
            else Cell(f"{format_mib(grown, 1)} MiB"),
        ),
    ]
    seen = run.processor_events or [
        "nothing was seen that would change the clock or the temperature, as far as the device tells"
    ]
    told = [
        Column("from, s", "number"),
        Column("runs", "number"),
        Column("p50 ms", "number"),
        Column("GHz", "number"),
        Column("°C", "number"),
    ]
    body = [
        TableRow(
            (
                Cell(f"{window.start_s:.1f}"),
                Cell(str(len(window.latencies_ns))),
                Cell(format_milliseconds(window.median_ns / 1e6)),
                Cell(
                    MISSING_VALUE
                    if window.frequency_khz is None
                    else f"{window.frequency_khz / 1e6:.2f}"
                ),
                Cell(
                    MISSING_VALUE if window.temperature_c is None else f"{window.temperature_c:.1f}"
                ),
            )
        )
        for window in run.windows
    ]
    figures = grid("figures", [draw_sustained("Without a pause", run), definition_list(pairs)])
    return [
        figures,
        bullets([f"{text[0].upper()}{text[1:]}." for text in seen]),
        details("The windows as a table", [table("Windows", told, body)]),
    ]
