"""HTML report of one or more benchmark results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from edgetl.core.artifacts.bench import BenchResult
from edgetl.core.artifacts.bench_rows import BenchRow
from edgetl.core.artifacts.session import OperatorProfile, ProfiledOperator
from edgetl.core.artifacts.sustained import LatencyWindow, SustainedResult
from edgetl.core.formatting import (
    MISSING_VALUE,
    PROFILE_CLOCK_DESCRIPTIONS,
    format_milliseconds,
    pluralize,
)
from edgetl.report.bench.provenance import devices_section, method_section
from edgetl.report.bench.runtimes import runtimes_section
from edgetl.report.bench.summary import page_title, summary_section
from edgetl.report.bench.table import table_section
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
    format_interval,
    format_mib,
    format_number,
    full_row_name,
    join_words,
    result_titles,
    row_names,
)

_MAX_LISTED_OPERATORS = 12
"""Maximum number of operators listed by name; the others are summed."""


def render_bench_report(results: Sequence[BenchResult]) -> str:
    """Render one self-contained HTML page over all results. The output is deterministic."""
    title, lead = page_title(results)
    return render_page(title, lead, bench_sections(results))


def bench_sections(results: Sequence[BenchResult]) -> list[Section]:
    """Build the sections of the benchmark report; sections without content have no blocks."""
    return [
        summary_section(results),
        runtimes_section(results),
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
    make_blocks: Callable[[BenchResult], list[Markup]],
) -> Section:
    """Build a section with the blocks of each result, under its title if there are several."""
    section_blocks: list[Markup] = []
    for result_title, result in zip(result_titles(results), results, strict=True):
        blocks = make_blocks(result)
        if blocks and len(results) > 1:
            section_blocks.append(heading(result_title))
        section_blocks += blocks
    return Section(anchor, title, tuple(section_blocks))


def _figure_grid(figures: Sequence[Markup]) -> list[Markup]:
    return [grid("figures", figures)] if figures else []


def _group_by_scope(result: BenchResult) -> dict[str, list[BenchRow]]:
    """Group the timed rows by scope; the rows of a group share one axis."""
    groups: dict[str, list[BenchRow]] = {}
    for row in result.rows:
        if row.rounds:
            groups.setdefault(f"Scope {row.scope}", []).append(row)
    return groups


def _distribution_blocks(result: BenchResult) -> list[Markup]:
    figures = [
        figure
        for title, rows in _group_by_scope(result).items()
        for figure in draw_distributions(title, rows, row_names(rows))
    ]
    return _figure_grid(figures)


def _round_blocks(result: BenchResult) -> list[Markup]:
    groups = {
        title: rows
        for title, rows in _group_by_scope(result).items()
        if max(len(row.rounds) for row in rows) > 1
    }
    if not groups:
        return []
    blocks = _figure_grid(
        [draw_rounds(title, rows, row_names(rows)) for title, rows in groups.items()]
    )
    rows = [row for group in groups.values() for row in group]
    names = row_names(rows)
    unsteady = [names[row.id] for row in rows if not row.steady]
    if unsteady:
        blocks.append(
            paragraph(
                f"Warm-up ended before latencies were steady: {join_words(unsteady)}.",
                badges=[Badge("not steady", "warn")],
            )
        )
    blocks.append(details("Medians as a table", [_round_medians_table(rows, names)]))
    return blocks


def _round_medians_table(rows: Sequence[BenchRow], names: Mapping[str, str]) -> Markup:
    count = max(len(row.rounds) for row in rows)
    columns = [Column("row"), *(Column(str(number), "number") for number in range(1, count + 1))]
    body = []
    for row in rows:
        medians = [Cell(format_milliseconds(value / 1e6)) for value in row.round_medians_ns]
        padding = [Cell(MISSING_VALUE)] * (count - len(row.rounds))
        body.append(TableRow((Cell(names[row.id]), *medians, *padding)))
    return table("p50 of each round, ms", columns, body)


def _stage_blocks(result: BenchResult) -> list[Markup]:
    groups = {
        title: [row for row in rows if row.stages_ms]
        for title, rows in _group_by_scope(result).items()
    }
    rows = [row for group in groups.values() for row in group]
    if not rows:
        return []
    stages = _order_stages(rows)
    colors = {stage: FILL_COLORS[index % len(FILL_COLORS)] for index, stage in enumerate(stages)}
    figures = [
        figure
        for title, group in groups.items()
        if group
        for figure in draw_stages(title, group, row_names(group), colors)
    ]
    return [*_figure_grid(figures), _stages_table(rows, stages)]


def _order_stages(rows: Sequence[BenchRow]) -> list[str]:
    """Return the stages of all rows in execution order."""
    stages_by_row = [list(row.stages_ms) for row in rows]
    # The row with the most stages defines the order; the other rows skip some of them.
    longest = max(stages_by_row, key=len)
    return list(dict.fromkeys([*longest, *(name for names in stages_by_row for name in names)]))


def _stages_table(rows: Sequence[BenchRow], stages: Sequence[str]) -> Markup:
    names = row_names(rows)
    body = []
    for row in rows:
        times = row.stages_ms
        total = sum(times.values()) or 1.0
        cells = [
            Cell(
                format_milliseconds(times.get(stage)),
                small=f"{times[stage] / total:.0%}" if stage in times else "",
            )
            for stage in stages
        ]
        body.append(TableRow((Cell(names[row.id]), *cells)))
    columns = [Column("row"), *(Column(stage, "number") for stage in stages)]
    return table("Median of each stage, ms", columns, body)


def _operator_blocks(result: BenchResult) -> list[Markup]:
    rows = {row.id: row for row in result.rows}
    columns = [
        Column("operator", "short"),
        Column("share", "short"),
        Column("nodes", "number"),
        Column("µs", "number"),
        Column("provider", "short"),
    ]
    blocks: list[Markup] = []
    for row_id, profile in result.profiles.items():
        operators = sorted(profile.operators, key=lambda operator: -operator.share)
        if not operators:
            continue
        name = row_id
        if row_id in rows:
            name = f"{full_row_name(rows[row_id])}, scope {rows[row_id].scope}"
        body = [_operator_row(operator) for operator in operators[:_MAX_LISTED_OPERATORS]]
        if len(operators) > _MAX_LISTED_OPERATORS:
            body.append(_other_operators_row(operators[_MAX_LISTED_OPERATORS:]))
        title = "Time by kernel" if profile.rows == "kernels" else "Time by operator"
        blocks += [paragraph(_profile_note(name, profile)), table(title, columns, body)]
    return blocks


def _profile_note(name: str, profile: OperatorProfile) -> str:
    note = f"{name} in {profile.runs} profiled runs."
    if profile.clock is not None:
        note += f" Times are {PROFILE_CLOCK_DESCRIPTIONS[profile.clock]}."
    return f"{note} Profiling adds overhead: use the shares, not the sums."


def _operator_row(operator: ProfiledOperator) -> TableRow:
    return TableRow(
        (
            Cell(operator.operator),
            Cell(f"{operator.share:.1%}", bar_share=min(1.0, max(0.0, operator.share))),
            Cell(str(operator.nodes)),
            Cell(f"{operator.us:,.1f}"),
            Cell(operator.provider or MISSING_VALUE),
        )
    )


def _other_operators_row(operators: Sequence[ProfiledOperator]) -> TableRow:
    total = ProfiledOperator(
        operator=f"{len(operators)} others",
        provider="",
        nodes=sum(operator.nodes for operator in operators),
        us=sum(operator.us for operator in operators),
        share=sum(operator.share for operator in operators),
    )
    return TableRow(_operator_row(total).cells, "dim")


def _sustained_blocks(result: BenchResult) -> list[Markup]:
    run = result.sustained
    if run is None:
        return []
    row = next((row for row in result.rows if row.id == run.row), None)
    configuration = run.row if row is None else f"{full_row_name(row)}, scope {row.scope}"
    facts = definition_list(_sustained_facts(run, configuration))
    events = run.processor_events or ["no change of clock or temperature was reported"]
    return [
        grid("figures", [draw_sustained("Continuous load", run), facts]),
        bullets([f"{text[0].upper()}{text[1:]}." for text in events]),
        details("Windows as a table", [_windows_table(run.windows)]),
    ]


def _sustained_facts(run: SustainedResult, configuration: str) -> list[tuple[str, Cell]]:
    runs = sum(len(window.latencies_ns) for window in run.windows)
    windows = pluralize(len(run.windows), "window")
    settled = Cell("", badges=(Badge("never settled", "warn"),))
    percentile_name = "p{} of all runs"
    if run.settled_index is not None:
        settled = Cell(f"after {run.windows[run.settled_index].start_s:.0f} s")
        percentile_name = "steady p{}"
    percentiles = [
        (
            percentile_name.format(percent),
            Cell(f"{format_milliseconds(run.steady_percentile_ms(percent))} ms"),
        )
        for percent in (50, 90, 99)
    ]
    growth = Cell(MISSING_VALUE, tooltip="not reported")
    if run.memory_growth_bytes is not None:
        growth = Cell(f"{format_mib(run.memory_growth_bytes, 1)} MiB")
    return [
        ("configuration", Cell(configuration)),
        ("length", Cell(f"{run.asked_s:.0f} s requested, {windows}, {runs:,} runs")),
        ("settled", settled),
        *percentiles,
        ("drift of p50", _drift_cell(run)),
        ("memory growth", growth),
    ]


def _drift_cell(run: SustainedResult) -> Cell:
    drift = run.drift
    if drift is None:
        return Cell(MISSING_VALUE, tooltip="fewer than eight windows")
    interval = format_interval(drift.low, drift.high, 3)
    return Cell(
        f"last quarter / first quarter {drift.ratio:.3f} {interval}",
        badges=(Badge(drift.verdict, "good" if drift.verdict == "steady" else "warn"),),
    )


def _windows_table(windows: Sequence[LatencyWindow]) -> Markup:
    columns = [
        Column("from, s", "number"),
        Column("runs", "number"),
        Column("p50 ms", "number"),
        Column("GHz", "number"),
        Column("°C", "number"),
    ]
    rows = []
    for window in windows:
        frequency_ghz = None if window.frequency_khz is None else window.frequency_khz / 1e6
        cells = (
            Cell(f"{window.start_s:.1f}"),
            Cell(str(len(window.latencies_ns))),
            Cell(format_milliseconds(window.median_ns / 1e6)),
            Cell(format_number(frequency_ghz, 2)),
            Cell(format_number(window.temperature_c)),
        )
        rows.append(TableRow(cells))
    return table("Windows", columns, rows)
