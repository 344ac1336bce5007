"""The page over one or more bench results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from edgetl.core.artifacts.bench import BenchResult
from edgetl.core.artifacts.bench_rows import Row
from edgetl.core.formatting import MISSING, PROFILE_CLOCKS, counted, milliseconds
from edgetl.report.bench.provenance import ledger_section, method_section
from edgetl.report.bench.summary import summary_section, table_section
from edgetl.report.charts.latency import draw_distributions, draw_rounds, draw_stages
from edgetl.report.charts.svg import FILLS
from edgetl.report.charts.sweeps import draw_sustained, draw_sweeps, sweep_rows
from edgetl.report.html.blocks import (
    Badge,
    Cell,
    Column,
    Section,
    TableRow,
    bullets,
    facts,
    folded,
    grid,
    heading,
    paragraph,
    render_page,
    table,
)
from edgetl.report.html.text import (
    device_and_host,
    full_name,
    interval,
    joined,
    mib,
    model_name,
    row_names,
    titles,
)

_OPERATORS = 12
"""Operators of a profile that are listed by name; the rest is added up."""


def bench_report(results: Sequence[BenchResult]) -> str:
    """One self-contained HTML page over all results; the same results give the same page."""
    devices = list(dict.fromkeys(device_and_host(result.device) for result in results))
    models = list(dict.fromkeys(model_name(result) for result in results))
    lead = f"{counted(len(results), 'result')}, {counted(len(devices), 'device')}: {joined(models)} on {joined(devices)}."
    return render_page(f"Latency of {joined(models)}", lead, bench_sections(results))


def bench_sections(results: Sequence[BenchResult]) -> list[Section]:
    """The page's sections, for pages that show more than bench results; those without content have no blocks."""
    return [
        summary_section(results),
        table_section(results),
        _each("distributions", "Distributions", results, _distributions),
        _each("rounds", "Rounds", results, _rounds),
        _each("stages", "Stages", results, _stages),
        _each("operators", "Operators", results, _operators),
        _each(
            "sweeps",
            "Sweeps",
            results,
            lambda result: _figures(draw_sweeps(sweep_rows(result.rows))),
        ),
        _each("sustained", "Latency over time", results, _sustained),
        ledger_section(results),
        method_section(results),
    ]


def _each(
    anchor: str,
    title: str,
    results: Sequence[BenchResult],
    made: Callable[[BenchResult], list[Markup]],
) -> Section:
    parts = [(name, made(result)) for name, result in zip(titles(results), results, strict=True)]
    blocks: list[Markup] = []
    for name, part in parts:
        if part:
            blocks += [*([heading(name)] if len(results) > 1 else []), *part]
    return Section(anchor, title, tuple(blocks))


def _figures(drawn: Sequence[Markup]) -> list[Markup]:
    return [grid("figures", drawn)] if drawn else []


def _scopes(result: BenchResult) -> dict[str, list[Row]]:
    """Timed rows by scope: what is drawn on one axis."""
    found: dict[str, list[Row]] = {}
    for row in result.rows:
        if row.rounds:
            found.setdefault(f"Scope {row.scope}", []).append(row)
    return found


def _distributions(result: BenchResult) -> list[Markup]:
    return _figures(
        [
            drawn
            for title, rows in _scopes(result).items()
            for drawn in draw_distributions(title, rows, row_names(rows))
        ]
    )


def _rounds(result: BenchResult) -> list[Markup]:
    scopes = {
        title: rows
        for title, rows in _scopes(result).items()
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
                *(Cell(milliseconds(value / 1e6)) for value in row.medians_ns),
                *[Cell(MISSING)] * (count - len(row.rounds)),
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
            f"Warm-up was cut off before it was steady: {joined(unsteady)}.",
            badges=[Badge("not steady", "warn")],
        )
    ]
    return [
        *_figures(drawn),
        *(doubt if unsteady else []),
        folded("The medians as a table", [numbers]),
    ]


def _stages(result: BenchResult) -> list[Markup]:
    blocks: list[Markup] = []
    drawn, body = [], []
    staged = {
        title: [row for row in rows if row.stages_ms()] for title, rows in _scopes(result).items()
    }
    stages = list(
        dict.fromkeys(
            stage for rows in staged.values() for row in rows for stage in row.stages_ms()
        )
    )
    # Of the stages of all scopes the longest list tells the order in which they follow on each other.
    longest = max(
        ([*row.stages_ms()] for rows in staged.values() for row in rows), key=len, default=[]
    )
    stages = list(dict.fromkeys([*longest, *stages]))
    colours = {stage: FILLS[index % len(FILLS)] for index, stage in enumerate(stages)}
    every = row_names([row for rows in staged.values() for row in rows])
    for title, rows in staged.items():
        if rows:
            drawn += draw_stages(title, rows, row_names(rows), colours)
        for row in rows:
            times = row.stages_ms()
            total = sum(times.values()) or 1.0
            cells = [
                Cell(
                    milliseconds(times.get(stage)),
                    small=f"{times[stage] / total:.0%}" if stage in times else "",
                )
                for stage in stages
            ]
            body.append(TableRow((Cell(every[row.id]), *cells)))
    if body:
        blocks = [
            *_figures(drawn),
            table(
                "Median of each stage, ms",
                [Column("row"), *(Column(stage, "number") for stage in stages)],
                body,
            ),
        ]
    return blocks


def _operators(result: BenchResult) -> list[Markup]:
    by_id = {row.id: row for row in result.rows}
    blocks: list[Markup] = []
    for row_id, profile in result.profiles.items():
        operators = sorted(
            profile.get("operators", []), key=lambda operator: -float(operator.get("share") or 0)
        )
        if not operators:
            continue
        name = (
            f"{full_name(by_id[row_id])}, scope {by_id[row_id].scope}"
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
        body = [_operator(operator) for operator in operators[:_OPERATORS]]
        if operators[_OPERATORS:]:
            body.append(_rest(operators[_OPERATORS:]))
        runs = f" in {profile['runs']} profiled runs" if profile.get("runs") is not None else ""
        clock = PROFILE_CLOCKS.get(str(profile.get("clock")), "")
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


def _operator(operator: Mapping[str, Any]) -> TableRow:
    share, took = operator.get("share"), operator.get("us")
    return TableRow(
        (
            Cell(str(operator.get("operator", MISSING))),
            Cell(MISSING)
            if share is None
            else Cell(f"{share:.1%}", share=min(1.0, max(0.0, float(share)))),
            Cell(str(operator.get("nodes", MISSING))),
            Cell(MISSING if took is None else f"{took:,.1f}"),
            Cell(str(operator.get("provider") or MISSING)),
        )
    )


def _rest(operators: Sequence[Mapping[str, Any]]) -> TableRow:
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
    return TableRow(_operator(rest).cells, "dim")


def _sustained(result: BenchResult) -> list[Markup]:
    run = result.sustained
    if run is None or not run.windows:
        return []
    row = next((row for row in result.rows if row.id == run.row), None)
    settled, drift, grown = run.settled, run.drift, run.memory_growth_bytes
    after = (
        Cell("", badges=(Badge("never settled", "warn"),))
        if settled is None
        else Cell(f"after {run.windows[settled].start_s:.0f} s")
    )
    verdict = Cell(MISSING, title="fewer than eight windows")
    if drift is not None:
        tone = Badge(drift.verdict, "good" if drift.verdict == "steady" else "warn")
        verdict = Cell(
            f"last quarter / first quarter {drift.ratio:.3f} {interval(drift.low, drift.high, 3)}",
            badges=(tone,),
        )
    runs = sum(len(window.latencies_ns) for window in run.windows)
    pairs = [
        ("configuration", Cell(run.row if row is None else f"{full_name(row)}, scope {row.scope}")),
        (
            "length",
            Cell(
                f"{run.asked_s:.0f} s asked for, {counted(len(run.windows), 'window')}, {runs:,} runs"
            ),
        ),
        ("settled", after),
        *(
            (
                f"p{percent} of all runs" if settled is None else f"steady p{percent}",
                Cell(f"{milliseconds(run.steady_ms(percent))} ms"),
            )
            for percent in (50, 90, 99)
        ),
        ("drift of p50", verdict),
        (
            "memory growth",
            Cell(MISSING, title="not told") if grown is None else Cell(f"{mib(grown, 1)} MiB"),
        ),
    ]
    seen = run.reasons or [
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
                Cell(milliseconds(window.median_ns / 1e6)),
                Cell(
                    MISSING if window.frequency_khz is None else f"{window.frequency_khz / 1e6:.2f}"
                ),
                Cell(MISSING if window.temperature_c is None else f"{window.temperature_c:.1f}"),
            )
        )
        for window in run.windows
    ]
    figures = grid("figures", [draw_sustained("Without a pause", run), facts(pairs)])
    return [
        figures,
        bullets([f"{text[0].upper()}{text[1:]}." for text in seen]),
        folded("The windows as a table", [table("Windows", told, body)]),
    ]
