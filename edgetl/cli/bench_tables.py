"""Terminal output of a bench result: tables, comparisons, notes and the path of the file."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from edgetl.cli.console import out, plain_table, verdict_markup
from edgetl.cli.runtime_tables import (
    compares_runtimes,
    half_width_markup,
    show_recommended_runtime,
    show_runtimes,
)
from edgetl.core.formatting import (
    MISSING_VALUE,
    PROFILE_CLOCK_DESCRIPTIONS,
    format_gpu_state,
    format_milliseconds,
    format_node_counts,
    format_speedup,
    pluralize,
)
from edgetl.core.typed_json import to_json

if TYPE_CHECKING:
    from edgetl.core.artifacts.bench import BenchResult
    from edgetl.core.artifacts.bench_rows import BenchRow
    from edgetl.core.artifacts.comparison import RowComparison
    from edgetl.core.artifacts.session import OperatorProfile
    from edgetl.core.artifacts.sustained import SustainedResult

OUTCOME_STYLES = {"held": "green", "broken": "bold red", "undecided": "yellow"}
_SPARKLINE_CHARACTERS = "▁▂▃▄▅▆▇█"
_SPARKLINE_WIDTH = 60
_MAX_OPERATORS = 8
_MAX_NODES = 4


def show_bench_result(result: BenchResult) -> None:
    """Print a bench result as tables and notes."""
    name = result.model.name or result.target
    thread_counts = {row.threads for row in result.rows}
    threads = ""
    if len(thread_counts) == 1:
        threads = f", {pluralize(next(iter(thread_counts)), 'thread')}"
    out.print(f"[bold]{name}[/] on {result.device.description}{threads}", highlight=False)
    if compares_runtimes(result):
        show_runtimes(result)
    else:
        out.print(_latency_table(result))
        out.print()
    out.print(_resource_table(result))
    out.print()
    if any(row.stages_ms for row in result.rows):
        out.print(_stage_table(result))
        out.print()
    for row_id, profile in result.profiles.items():
        out.print(_profile_table(row_id, profile))
        if profile.clock is not None:
            out.print(
                f"Times are {PROFILE_CLOCK_DESCRIPTIONS[profile.clock]}.",
                style="dim",
                soft_wrap=True,
            )
        out.print()
    _show_comparisons(result)
    _show_notes(result)
    if result.sustained is not None:
        _show_sustained(result.sustained)
    if compares_runtimes(result):
        show_recommended_runtime(result)
    else:
        _show_recommendation(result)
    for check in result.limit_checks:
        out.print(
            f"Limit    [{OUTCOME_STYLES[check.outcome]}]{check.outcome}[/] --{check.limit}: ",
            end="",
        )
        out.print(check.why, markup=False, soft_wrap=True)
    if not any(row.rounds for row in result.rows):
        out.print("Noise    nothing was timed")
    elif result.noise.is_noisy:
        out.print("Noise    [yellow]noisy[/]: " + "; ".join(result.noise.reasons), soft_wrap=True)
    else:
        out.print("Noise    [green]quiet[/]: " + _noise_summary(result))
    if result.path is not None:
        out.print(f"Result   {result.path}", markup=False, soft_wrap=True)


def _latency_table(result: BenchResult) -> Table:
    table = plain_table()
    comparisons = {
        pair.candidate: result.find_eager_comparison(pair.candidate) or pair
        for pair in reversed(result.comparisons)
        if pair.earlier_row is None
    }
    baselines = {comparison.baseline for comparison in comparisons.values()}
    varying_parameters = [
        name
        for name in ("provider", "batch", "threads", "rate")
        if len({getattr(row, name) for row in result.rows}) > 1
    ]
    for heading in ("runtime", "variant", "scope", *varying_parameters):
        table.add_column(heading)
    # One thread without pauses computes all the time, so that its processor time is the latency.
    shows_cpu_time = any(row.threads > 1 or row.rate for row in result.rows)
    cpu_heading = ["CPU ms"] if shows_cpu_time else []
    for heading in ("p50 ms", "±", "p90 ms", "p99 ms", "img/s", *cpu_heading):
        table.add_column(heading, justify="right")
    table.add_column("speed-up [95%]", justify="right")
    table.add_column("verdict")
    for row in sorted(
        result.rows,
        key=lambda row: (row.scope != "model", row.scope, row.rate or 0, row.batch, row.threads),
    ):
        p50, p90, p99 = (
            format_milliseconds(row.percentile_ms(percent)) for percent in (50, 90, 99)
        )
        rate = MISSING_VALUE if row.images_per_second is None else f"{row.images_per_second:.1f}"
        table.add_row(
            row.runtime,
            row.variant,
            row.scope,
            *(_parameter_cell(row, name) for name in varying_parameters),
            p50,
            half_width_markup(row),
            p90,
            p99,
            rate,
            *([format_milliseconds(row.cpu_ms)] if shows_cpu_time else []),
            *_speedup_cells(row, comparisons, baselines),
        )
    return table


def _parameter_cell(row: BenchRow, name: str) -> str:
    value = getattr(row, name)
    if value is None:
        return "single"
    return f"{value:g}/s" if name == "rate" else str(value)


def _speedup_cells(
    row: BenchRow, comparisons: dict[str, RowComparison], baselines: set[str]
) -> tuple[str, str]:
    if row.has_failed_gate:
        return "", "[bold red]failed[/]"
    if row.id in comparisons:
        comparison = comparisons[row.id]
        return _speedup_markup(comparison), verdict_markup(comparison.verdict)
    return ("[dim]1[/]", "[dim]baseline[/]") if row.id in baselines else ("", "")


def _resource_table(result: BenchResult) -> Table:
    # The table of runtimes already has the size of the files and the refused rows.
    is_short = compares_runtimes(result)
    rows = [row for row in result.rows if row.rounds or not is_short]
    has_energy = any(row.energy_mj for row in rows)
    table = plain_table()
    table.add_column("cold start, ms", no_wrap=True)
    for heading in (
        "import",
        "session",
        "first",
        "total",
        "peak MiB",
        "growth",
        *([] if is_short else ["file MB"]),
        *(["mJ/image"] if has_energy else []),
    ):
        table.add_column(heading, justify="right")
    table.add_column("golden images")
    configurations = {
        (row.runtime, row.variant, row.provider, row.batch, row.threads): row
        for row in reversed(rows)
    }
    providers, batches, threads = ({key[index] for key in configurations} for index in (2, 3, 4))
    for row in reversed(configurations.values()):
        name = row.name
        name += f" {row.provider}" if len(providers) > 1 else ""
        name += f" b{row.batch}" if len(batches) > 1 else ""
        name += f" t{row.threads}" if len(threads) > 1 else ""
        cold = row.cold
        times = [MISSING_VALUE] * 4
        if cold is not None:
            parts_ms = (cold.import_ms, cold.session_ms, cold.first_inference_ms, cold.total_ms)
            times = [f"{value:.0f}" for value in parts_ms]
        growth = row.memory_growth_bytes
        memory = [
            _format_mebibytes(None if cold is None else cold.peak_memory_bytes),
            MISSING_VALUE if growth is None else f"{growth / 2**20:+.1f}",
        ]
        file_size = [] if is_short else [f"{row.file_bytes / 1e6:.1f}"]
        energy = [_energy_cell(row)] if has_energy else []
        table.add_row(name, *times, *memory, *file_size, *energy, _gate_cell(row))
    return table


def _energy_cell(row: BenchRow) -> str:
    energy_mj = row.energy_mj
    return ", ".join(f"{mj:.1f} ({source})" for source, mj in energy_mj.items()) or MISSING_VALUE


def _gate_cell(row: BenchRow) -> str:
    gate = row.gate
    if not gate.checked:
        return f"[yellow]not checked[/], {row.session.feed or 'random'} input"
    if row.has_failed_gate:
        return "[bold red]failed[/]"
    difference = gate.max_logit_difference
    small = "" if difference is None else f" |Δlogit| {difference:.1g}"
    return f"[green]{gate.top1_agreement}/{gate.images} agree[/]{small}"


def _stage_table(result: BenchResult) -> Table:
    rows = [row for row in result.rows if row.stages_ms]
    names = list(dict.fromkeys(name for row in rows for name in row.stages_ms))
    table = plain_table()
    table.add_column("stages, median ms")
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        stages = row.stages_ms
        paced = "" if row.rate is None else f" {row.rate:g}/s"
        table.add_row(
            f"{row.name} {row.scope}{paced} t{row.threads}",
            *(format_milliseconds(stages.get(name)) for name in names),
        )
    return table


def _profile_table(row_id: str, profile: OperatorProfile) -> Table:
    table = plain_table()
    table.add_column(f"{profile.rows} of {row_id}")
    table.add_column("provider")
    for heading in ("nodes", "µs", "share"):
        table.add_column(heading, justify="right")
    for operator in profile.operators[:_MAX_OPERATORS]:
        table.add_row(
            operator.operator,
            operator.provider,
            str(operator.nodes),
            f"{operator.us:.0f}",
            f"{operator.share:.1%}",
        )
    others = profile.operators[_MAX_OPERATORS:]
    if others:
        share = sum(operator.share for operator in others)
        table.add_row(f"[dim]{len(others)} more[/]", "", "", "", f"{share:.1%}")
    for node in profile.nodes[:_MAX_NODES]:
        table.add_row(
            f"[dim]node {escape(node.node)}[/]", "", "", f"{node.us:.0f}", f"{node.share:.1%}"
        )
    return table


def _show_comparisons(result: BenchResult) -> None:
    for pair in result.comparisons:
        if pair.earlier_row is None:
            base = result.get_row(pair.baseline)
            if base.runtime == "pytorch" and base.variant != "fp32":
                out.print(f"Against  {_comparison_markup(pair)}", soft_wrap=True)
            continue
        earlier = pair.earlier_row
        out.print(
            f"Earlier  {_comparison_markup(pair)} of {earlier.created} "
            f"(p50 {format_milliseconds(earlier.p50_ms)} ms; {earlier.description})",
            soft_wrap=True,
        )


def _comparison_markup(pair: RowComparison) -> str:
    speedup = f"{_speedup_markup(pair)} {verdict_markup(pair.verdict)}"
    return f"{pair.candidate} is {speedup} against {pair.baseline}"


def _show_notes(result: BenchResult) -> None:
    for row in result.rows:
        if row.rounds and not row.steady:
            out.print(
                f"[yellow]Not steady:[/] {row.id}: warm-up did not reach a steady state (2%) in "
                "every round."
            )
        if row.waiting_share > 0.01:
            out.print(
                f"[yellow]Late:[/]     {row.id}: {row.waiting_share:.0%} of the arrivals had to "
                "wait for the previous inference."
            )
    shares = {
        (row.variant, row.provider): row.session.node_share
        for row in result.rows
        if row.session.node_share is not None and len(row.session.node_share) > 1
    }
    for (variant, provider), node_share in shares.items():
        out.print(
            f"Nodes    {variant} {provider}: {format_node_counts(node_share)}", soft_wrap=True
        )
    for row in result.rows:
        if row.gpu is not None:
            out.print(
                f"GPU      {row.id}: {format_gpu_state(row.gpu)}",
                markup=False,
                soft_wrap=True,
            )
    for note in result.notes:
        out.print("Note     ", end="")
        out.print(note, markup=False, soft_wrap=True)


def _show_sustained(sustained: SustainedResult) -> None:
    medians = [window.median_ns for window in sustained.windows]
    elapsed_s = sustained.windows[-1].start_s + 1
    out.print(f"Sustained {sustained.row}, {elapsed_s:.0f} s of {sustained.asked_s:.0f}")
    low, high = format_milliseconds(min(medians) / 1e6), format_milliseconds(max(medians) / 1e6)
    out.print(f"         {_sparkline(medians)} {low} to {high} ms (medians over 1 s)")
    percentiles = ", ".join(
        f"p{percent} {format_milliseconds(sustained.steady_percentile_ms(percent))} ms"
        for percent in (50, 90, 99)
    )
    if sustained.settled_index is None:
        out.print(f"         never steady; over the total time: {percentiles}")
    else:
        settled_s = sustained.windows[sustained.settled_index].start_s
        out.print(f"         steady after {settled_s:.0f} s; from then on: {percentiles}")
    drift = sustained.drift
    if drift is not None:
        color = "green" if drift.verdict == "steady" else "yellow"
        interval = f"\\[{drift.low:.3f}, {drift.high:.3f}]"
        events = "".join(f"; {event}" for event in sustained.processor_events)
        out.print(
            f"         [{color}]{drift.verdict}[/]: "
            f"last quarter {drift.ratio:.3f} {interval} of the first{events}",
            soft_wrap=True,
        )


def _show_recommendation(result: BenchResult) -> None:
    recommendation = result.recommendation
    if recommendation is None:
        return
    choices = [("Fastest ", recommendation.latency)]
    if recommendation.throughput.row != recommendation.latency.row:
        choices.append(("Most/s  ", recommendation.throughput))
    for heading, choice in choices:
        text = f"{heading} {choice.row}: {format_milliseconds(choice.p50_ms)} ms"
        text += f", {choice.images_per_second:.0f} images/s"
        if choice.as_fast:
            rows = ", ".join(choice.as_fast)
            text += (
                f" (equally fast, but with more threads, a larger file or needless options: {rows})"
            )
        if result.is_emulated:
            text += ", emulated: measure on the device before choosing"
        out.print(text, markup=False, soft_wrap=True)
        options = ", ".join(
            f"{name}={value}"
            for name, value in to_json(choice.options).items()
            if name not in ("variant", "batch")
        )
        out.print(f"         session: {options}", style="dim", markup=False, soft_wrap=True)


def _noise_summary(result: BenchResult) -> str:
    measured = result.noise.measured
    shares = (
        (measured.other_cpu, "of the CPU used by other processes"),
        (measured.steal, "CPU steal"),
    )
    parts = [f"{share:.1%} {description}" for share, description in shares if share is not None]
    spread = max(measured.round_spread.values(), default=None)
    if spread is not None:
        parts.append(f"rounds within {spread:.1%}")
    return ", ".join(parts) or "no measurements available"


def _sparkline(values: list[float]) -> str:
    edges = [index * len(values) // _SPARKLINE_WIDTH for index in range(_SPARKLINE_WIDTH + 1)]
    # With fewer values than columns some columns are empty; they are left out.
    columns = [max(values[start:end]) for start, end in pairwise(edges) if start < end]
    low, high = min(columns), max(columns)
    steps = len(_SPARKLINE_CHARACTERS) - 1
    levels = [round(steps * (value - low) / (high - low or 1)) for value in columns]
    return "".join(_SPARKLINE_CHARACTERS[level] for level in levels)


def _format_mebibytes(count: int | None) -> str:
    return MISSING_VALUE if count is None else f"{count / 2**20:.0f}"


def _speedup_markup(comparison: RowComparison) -> str:
    return escape(format_speedup(comparison.speedup))
