"""A bench result on the terminal: figures, comparisons, what they rest on, and where it lies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from edgetl.cli.console import out
from edgetl.core.formatting import (
    MISSING_VALUE,
    PROFILE_CLOCK_DESCRIPTIONS,
    describe_device,
    format_gpu_state,
    format_milliseconds,
    pluralize,
)

if TYPE_CHECKING:
    from edgetl.core.artifacts.bench import BenchResult
    from edgetl.core.artifacts.bench_rows import BenchRow
    from edgetl.core.artifacts.comparison import RowComparison
    from edgetl.core.artifacts.sustained import SustainedResult

VERDICT_STYLES = {
    "faster": "bold green",
    "slower": "bold red",
    "inconclusive": "yellow",
    "noisy": "yellow",
}
OUTCOME_STYLES = {"held": "green", "broken": "bold red", "undecided": "yellow"}
_SPARKLINE_CHARACTERS = "▁▂▃▄▅▆▇█"
_SPARKLINE_WIDTH, _MAX_OPERATORS, _MAX_NODES = 60, 8, 4


def show_bench_result(result: BenchResult) -> None:
    """Print a result for people."""
    name = result.model.get("name") or result.target
    threads = {row.threads for row in result.rows}
    shared = f", {pluralize(next(iter(threads)), 'thread')}" if len(threads) == 1 else ""
    out.print(f"[bold]{name}[/] on {describe_device(result.device)}{shared}", highlight=False)
    out.print(_latency_table(result))
    out.print()
    out.print(_resource_table(result))
    out.print()
    if any(row.summarize_stages_ms() for row in result.rows):
        out.print(_stage_table(result))
        out.print()
    for row_id, profile in result.profiles.items():
        out.print(_profile_table(row_id, profile))
        if "clock" in profile:
            out.print(
                f"Times are {PROFILE_CLOCK_DESCRIPTIONS[profile['clock']]}.",
                style="dim",
                soft_wrap=True,
            )
        out.print()
    _show_comparisons(result)
    _show_notes(result)
    if result.sustained is not None:
        _show_sustained(result.sustained)
    _show_recommendation(result)
    for judged in result.limit_checks:
        out.print(
            f"Limit    [{OUTCOME_STYLES[judged.outcome]}]{judged.outcome}[/] --{judged.limit}: ",
            end="",
        )
        out.print(judged.why, markup=False, soft_wrap=True)
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
    beside = {
        pair.candidate: result.find_eager_comparison(pair.candidate) or pair
        for pair in reversed(result.comparisons)
        if pair.earlier_row is None
    }
    baselines = {comparison.baseline for comparison in beside.values()}
    varied = [
        name
        for name in ("provider", "batch", "threads", "rate")
        if len({getattr(row, name) for row in result.rows}) > 1
    ]
    for heading in ("runtime", "variant", "scope", *varied):
        table.add_column(heading)
    for heading in ("p50 ms", "±", "p90 ms", "p99 ms", "img/s"):
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
        interval = row.p50_interval_ms
        told = (
            ""
            if interval is None
            else f"[dim]{(interval[1] - interval[0]) / (interval[1] + interval[0]):.0%}[/]"
        )
        rate = MISSING_VALUE if row.images_per_second is None else f"{row.images_per_second:.1f}"
        which = [_parameter_cell(row, name) for name in varied]
        table.add_row(
            row.runtime,
            row.variant,
            row.scope,
            *which,
            p50,
            told,
            p90,
            p99,
            rate,
            *_speedup_cells(row, beside, baselines),
        )
    return table


def _parameter_cell(row: BenchRow, name: str) -> str:
    value = getattr(row, name)
    return "single" if value is None else f"{value:g}/s" if name == "rate" else str(value)


def _speedup_cells(
    row: BenchRow, beside: dict[str, RowComparison], baselines: set[str]
) -> tuple[str, str]:
    if row.has_failed_gate:
        return "", "[bold red]failed[/]"
    if row.id in beside:
        comparison = beside[row.id]
        return format_speedup(
            comparison
        ), f"[{VERDICT_STYLES[comparison.verdict]}]{comparison.verdict}[/]"
    return ("[dim]1[/]", "[dim]baseline[/]") if row.id in baselines else ("", "")


def _resource_table(result: BenchResult) -> Table:
    energy = any(row.summarize_energy_mj() for row in result.rows)
    table = plain_table()
    table.add_column("cold start, ms")
    for heading in (
        "import",
        "session",
        "first",
        "total",
        "peak MiB",
        "grown",
        "file MB",
        *(["mJ/image"] if energy else []),
    ):
        table.add_column(heading, justify="right")
    table.add_column("reference images")
    configurations = {
        (row.runtime, row.variant, row.provider, row.batch, row.threads): row
        for row in reversed(result.rows)
    }
    several = len({key[2:] for key in configurations}) > 1
    for row in reversed(configurations.values()):
        cold = row.summarize_cold_starts()
        parts = [
            f"{cold[name]:.0f}" if cold else MISSING_VALUE
            for name in ("import_ms", "session_ms", "first_inference_ms", "total_ms")
        ]
        grown = row.memory_growth_bytes
        memory = [
            _format_mebibytes(cold.get("peak_memory_bytes")),
            MISSING_VALUE if grown is None else f"{grown / 2**20:+.1f}",
        ]
        drawn = (
            [
                ", ".join(
                    f"{value:.1f} ({source})" for source, value in row.summarize_energy_mj().items()
                )
                or MISSING_VALUE
            ]
            if energy
            else []
        )
        name = f"{row.runtime} {row.variant}" + (
            f" {row.provider} b{row.batch} t{row.threads}" if several else ""
        )
        table.add_row(name, *parts, *memory, f"{row.file_bytes / 1e6:.1f}", *drawn, _gate_cell(row))
    return table


def _gate_cell(row: BenchRow) -> str:
    if not row.gate["checked"]:
        return f"[yellow]none: not checked[/], fed {row.session.get('feed', 'random')} input"
    if row.has_failed_gate:
        return "[bold red]failed[/]"
    return f"[green]{row.gate['top1_agreement']}/{row.gate['images']} agree[/] |Δlogit| {row.gate['max_logit_difference']:.1g}"


def _stage_table(result: BenchResult) -> Table:
    rows = [row for row in result.rows if row.summarize_stages_ms()]
    names = list(dict.fromkeys(name for row in rows for name in row.summarize_stages_ms()))
    table = plain_table()
    table.add_column("stages, median ms")
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        stages = row.summarize_stages_ms()
        paced = "" if row.rate is None else f" {row.rate:g}/s"
        table.add_row(
            f"{row.runtime} {row.variant} {row.scope}{paced} t{row.threads}",
            *(format_milliseconds(stages.get(name)) for name in names),
        )
    return table


def _profile_table(row_id: str, profile: dict[str, Any]) -> Table:
    table = plain_table()
    table.add_column(f"{profile.get('rows', 'operators')} of {row_id}")
    table.add_column("provider")
    for heading in ("nodes", "µs", "share"):
        table.add_column(heading, justify="right")
    for entry in profile["operators"][:_MAX_OPERATORS]:
        table.add_row(
            str(entry["operator"]),
            str(entry["provider"]),
            str(entry["nodes"]),
            f"{entry['us']:.0f}",
            f"{entry['share']:.1%}",
        )
    left = profile["operators"][_MAX_OPERATORS:]
    if left:
        table.add_row(
            f"[dim]{len(left)} more[/]",
            "",
            "",
            "",
            f"{sum(float(str(entry['share'])) for entry in left):.1%}",
        )
    for entry in profile["nodes"][:_MAX_NODES]:
        table.add_row(
            f"[dim]node {escape(str(entry['node']))}[/]",
            "",
            "",
            f"{entry['us']:.0f}",
            f"{entry['share']:.1%}",
        )
    return table


def _show_comparisons(result: BenchResult) -> None:
    for pair in result.comparisons:
        if pair.earlier_row is None:
            base = result.get_row(pair.baseline)
            if base.runtime == "pytorch" and base.variant != "fp32":
                out.print(
                    f"Against  {pair.candidate} is {format_speedup(pair)} {_verdict_markup(pair)} against {pair.baseline}",
                    soft_wrap=True,
                )
            continue
        earlier = pair.earlier_row
        out.print(
            f"Earlier  {pair.candidate} is {format_speedup(pair)} {_verdict_markup(pair)} against {pair.baseline} "
            f"of {earlier.created} (p50 {format_milliseconds(earlier.p50_ms)} ms; {earlier.description})",
            soft_wrap=True,
        )


def _show_notes(result: BenchResult) -> None:
    for row in result.rows:
        if row.rounds and not row.steady:
            out.print(
                f"[yellow]Not steady:[/] {row.id}: warm-up did not settle within 2% in every round."
            )
        if row.waiting_share > 0.01:
            out.print(
                f"[yellow]Late:[/]     {row.id}: {row.waiting_share:.0%} of the arrivals found the one before still being answered."
            )
    for row in result.rows:
        if row.summarize_gpu():
            out.print(
                f"GPU      {row.id}: {format_gpu_state(row.summarize_gpu())}",
                markup=False,
                soft_wrap=True,
            )
    for note in result.notes:
        out.print("Note     ", end="")
        out.print(note, markup=False, soft_wrap=True)


def _show_sustained(sustained: SustainedResult) -> None:
    medians = [window.median_ns for window in sustained.windows]
    drift, settled = sustained.drift, sustained.settled_index
    out.print(
        f"Sustained {sustained.row}, {sustained.windows[-1].start_s + 1:.0f} s of {sustained.asked_s:.0f}"
    )
    out.print(
        f"         {_sparkline(medians)} {format_milliseconds(min(medians) / 1e6)} to {format_milliseconds(max(medians) / 1e6)} ms (medians of a second)"
    )
    when = (
        "never settled; over all"
        if settled is None
        else f"settled after {sustained.windows[settled].start_s:.0f} s; from then on"
    )
    figures = ", ".join(
        f"p{percent} {format_milliseconds(sustained.steady_percentile_ms(percent))} ms"
        for percent in (50, 90, 99)
    )
    out.print(f"         {when}: {figures}")
    if drift is not None:
        colour = "green" if drift.verdict == "steady" else "yellow"
        last = f"last quarter {drift.ratio:.3f} \\[{drift.low:.3f}, {drift.high:.3f}] of the first"
        out.print(
            f"         [{colour}]{drift.verdict}[/]: {last}"
            + "".join(f"; {reason}" for reason in sustained.processor_events),
            soft_wrap=True,
        )


def _show_recommendation(result: BenchResult) -> None:
    chosen = result.recommendation
    if chosen is None:
        return
    emulated = ", emulated: measure on the device before choosing" if result.is_emulated else ""
    for what, choice in (("Fastest ", chosen.latency), ("Most/s  ", chosen.throughput)):
        if what.startswith("Most") and choice.row == chosen.latency.row:
            continue
        alike = (
            f" (as fast, with more threads or a larger file: {', '.join(choice.as_fast)})"
            if choice.as_fast
            else ""
        )
        out.print(
            f"{what} {choice.row}: {format_milliseconds(choice.p50_ms)} ms, {choice.images_per_second:.0f} images/s{alike}{emulated}",
            markup=False,
            soft_wrap=True,
        )
        options = ", ".join(
            f"{name}={value}"
            for name, value in choice.options.items()
            if name not in ("variant", "batch")
        )
        out.print(f"         session: {options}", style="dim", markup=False, soft_wrap=True)


def _noise_summary(result: BenchResult) -> str:
    measured = result.noise.measured
    told = [
        f"{measured[name]:.1%} {words}"
        for name, words in (("other_cpu", "of the CPU used by others"), ("steal", "stolen"))
        if measured.get(name) is not None
    ]
    spread = max(measured.get("round_spread", {}).values(), default=None)
    return (
        ", ".join([*told, *([] if spread is None else [f"rounds within {spread:.1%}"])])
        or "nothing to report"
    )


def _sparkline(values: list[float]) -> str:
    shown = [
        max(
            values[
                place * len(values) // _SPARKLINE_WIDTH : (place + 1)
                * len(values)
                // _SPARKLINE_WIDTH
            ],
            default=None,
        )
        for place in range(_SPARKLINE_WIDTH)
    ]
    kept = [value for value in shown if value is not None]
    low, high = min(kept), max(kept)
    return "".join(
        _SPARKLINE_CHARACTERS[
            round((len(_SPARKLINE_CHARACTERS) - 1) * (value - low) / (high - low or 1))
        ]
        for value in kept
    )


def _format_mebibytes(count: int | None) -> str:
    return MISSING_VALUE if count is None else f"{count / 2**20:.0f}"


def _verdict_markup(pair: RowComparison) -> str:
    return f"[{VERDICT_STYLES[pair.verdict]}]{pair.verdict}[/]"


def format_speedup(comparison: RowComparison) -> str:
    """`2.64× [2.05, 3.39]`, escaped for rich."""
    speedup = comparison.speedup
    return f"{speedup.ratio:.2f}× \\[{speedup.low:.2f}, {speedup.high:.2f}]"


def plain_table() -> Table:
    """Without lines but the one under the headings."""
    from rich import box

    return Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        header_style="bold",
        show_edge=False,
    )
