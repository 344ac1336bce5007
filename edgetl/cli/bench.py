"""`edgetl bench`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgetl.cli.console import err, out

if TYPE_CHECKING:
    from rich.table import Table

    from edgetl.core.comparisons import Comparison
    from edgetl.core.results import BenchResult
    from edgetl.core.rows import Row

WITHHELD = "—"
VERDICT_STYLE = {"faster": "bold green", "slower": "bold red", "inconclusive": "yellow", "noisy": "yellow"}


def bench(
    target: Annotated[Path, typer.Argument(metavar="RUN|BUNDLE|MODEL.onnx", help="A run directory, a bundle, or one ONNX file.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="What is timed: `model`, tensors to logits; `file`, an encoded file to its label. Repeat it or separate by commas.",
            show_default="model,file",
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Intra-op threads of every runtime.", show_default="the cores available")] = None,
    provider: Annotated[str, typer.Option(help="Execution provider: cpu, cuda, openvino, ...; never falls back silently.")] = "cpu",
    variant: Annotated[list[str] | None, typer.Option(help="A variant of the bundle; may be repeated.", show_default="all")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds; each runs every variant once in a fresh process, in random order.")] = 8,
    baseline: Annotated[
        Path | None, typer.Option(metavar="RESULT.json", help="Compare with an earlier result, of this or another device.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The result file to write.", show_default="a new one in RUN/bench or ./bench")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object, and nothing else.")] = False,
) -> None:
    """Measure ONNX Runtime against the full PyTorch model, on this device.

    Every variant first answers the bundle's reference images; only one that answers as PyTorch did is timed.
    Each round runs in fresh processes; the speed-up comes with its 95% interval.
    The verdict says when the data do not decide or the device was not quiet.
    """
    from edgetl.core.config import BenchConfig
    from edgetl.core.errors import BenchError

    chosen = tuple(name.strip() for names in scope or ["model,file"] for name in names.split(",") if name.strip())
    config = BenchConfig(
        target=target,
        scopes=chosen,  # type: ignore[arg-type]
        threads=threads,
        provider=provider,
        variants=tuple(variant or ()),
        rounds=rounds,
        baseline=baseline,
        output=output,
    )
    from edgetl.device.bench.run import bench as measure

    try:
        with _progress() as progress:
            result = measure(config, progress)
    except KeyboardInterrupt as interrupt:
        err.print(str(interrupt) or "Interrupted: nothing was kept.", style="yellow", markup=False, soft_wrap=True)
        raise typer.Exit(130) from None
    if as_json:
        json.dump(result.to_json(), sys.stdout, ensure_ascii=False, allow_nan=False)
        sys.stdout.write("\n")
    else:
        show(result)
    if result.failed:
        reasons = {f"{row.runtime} {row.variant}: {row.gate['reason']}" for row in result.failed}
        raise BenchError(
            f"The reference images did not pass, so it was not timed. {'; '.join(sorted(reasons))}. "
            "On this device the bundle does not answer as it was proven to: export it again, or try another --provider."
        )


def show(result: BenchResult) -> None:
    """Print a result for people: figures, comparisons, what they rest on, and where it lies."""
    name = result.model.get("name") or result.target
    where = result.device.get("board") or result.device.get("cpu") or result.device.get("host") or "this device"
    out.print(f"[bold]{name}[/] on {where}", highlight=False)
    out.print(_latency_table(result))
    out.print()
    out.print(_evidence_table(result))
    out.print()
    for comparison in result.comparisons:
        if comparison.earlier is not None:
            _show_earlier(comparison, result)
    for row in result.rows:
        if row.rounds and not row.steady:
            out.print(f"[yellow]Not steady:[/] {row.id}: warm-up did not settle within 2% in every round.")
    for note in result.notes:
        out.print("Note     ", end="")
        out.print(note, markup=False, soft_wrap=True)
    if not any(row.rounds for row in result.rows):
        out.print("Noise    nothing was timed")
    elif result.noise.noisy:
        out.print("Noise    [yellow]noisy[/]: " + "; ".join(result.noise.reasons))
    else:
        out.print("Noise    [green]quiet[/]: " + _quiet(result))
    out.print(f"Result   {result.path}", markup=False, soft_wrap=True)


def _latency_table(result: BenchResult) -> Table:
    from rich.table import Table

    beside = {comparison.candidate: comparison for comparison in result.comparisons if comparison.earlier is None}
    baselines = {comparison.baseline for comparison in beside.values()}
    table = _table(Table)
    for heading in ("runtime", "variant", "scope"):
        table.add_column(heading)
    for heading in ("threads", "p50 ms", "p90 ms", "p99 ms", "images/s"):
        table.add_column(heading, justify="right")
    table.add_column("speed-up [95%]", justify="right")
    table.add_column("verdict")
    for row in sorted(result.rows, key=lambda row: (row.scope != "model", row.scope)):
        figures = [_ms(row.percentile_ms(percent)) for percent in (50, 90, 99)]
        rate = WITHHELD if row.images_per_second is None else f"{row.images_per_second:.1f}"
        table.add_row(row.runtime, row.variant, row.scope, str(row.threads), *figures, rate, *_speedup_cells(row, beside, baselines))
    return table


def _speedup_cells(row: Row, beside: dict[str, Comparison], baselines: set[str]) -> tuple[str, str]:
    if row.failed:
        return "", "[bold red]failed[/]"
    if row.id in beside:
        comparison = beside[row.id]
        return _ratio(comparison), f"[{VERDICT_STYLE[comparison.verdict]}]{comparison.verdict}[/]"
    return ("[dim]1[/]", "[dim]baseline[/]") if row.id in baselines else ("", "")


def _evidence_table(result: BenchResult) -> Table:
    from rich.table import Table

    table = _table(Table)
    table.add_column("cold start")
    for heading in ("import ms", "session", "first", "total", "peak MiB", "file MB"):
        table.add_column(heading, justify="right")
    table.add_column("reference images")
    for row in {(row.runtime, row.variant): row for row in reversed(result.rows)}.values():
        cold = row.cold()
        parts = [f"{cold[name]:.0f}" if cold else WITHHELD for name in ("import_ms", "session_ms", "first_inference_ms", "total_ms")]
        memory = cold.get("peak_memory_bytes")
        peak = WITHHELD if memory is None else f"{memory / 2**20:.0f}"
        table.add_row(f"{row.runtime} {row.variant}", *parts, peak, f"{row.file_bytes / 1e6:.1f}", _gate(row))
    return table


def _gate(row: Row) -> str:
    if not row.gate["checked"]:
        return "[yellow]none: not checked[/]"
    if row.failed:
        return "[bold red]failed[/]"
    return f"[green]{row.gate['top1_agreement']}/{row.gate['images']} agree[/], |Δlogit| {row.gate['max_logit_difference']:.1g}"


def _show_earlier(comparison: Comparison, result: BenchResult) -> None:
    earlier = comparison.earlier
    assert earlier is not None
    labels = [
        "another device" if earlier.cross_device else "this device",
        "the same model" if earlier.same_model else "another model",
        f"{earlier.threads} threads" if earlier.threads != result.row(comparison.candidate).threads else "",
        "noisy" if earlier.noisy else "",
    ]
    out.print(
        f"Earlier  {comparison.candidate} is {_ratio(comparison)} "
        f"[{VERDICT_STYLE[comparison.verdict]}]{comparison.verdict}[/] against {comparison.baseline} "
        f"of {earlier.created} (p50 {_ms(earlier.p50_ms)} ms; {', '.join(filter(None, labels))})",
        soft_wrap=True,
    )


def _quiet(result: BenchResult) -> str:
    measured = result.noise.measured
    told = [
        f"{measured[name]:.1%} {words}"
        for name, words in (("other_cpu", "of the CPU used by others"), ("steal", "stolen"))
        if measured.get(name) is not None
    ]
    spread = max(measured.get("round_spread", {}).values(), default=None)
    return ", ".join([*told, *([] if spread is None else [f"rounds within {spread:.1%}"])]) or "nothing to report"


def _ratio(comparison: Comparison) -> str:
    speedup = comparison.speedup
    return f"{speedup.ratio:.2f}× \\[{speedup.low:.2f}, {speedup.high:.2f}]"


def _ms(value: float | None) -> str:
    if value is None:
        return WITHHELD
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _table(kind: type[Table]) -> Table:
    from rich import box

    return kind(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold", show_edge=False)


@contextmanager
def _progress() -> Iterator[Callable[[int, int, str], None]]:
    """A bar on a terminal, a line a step elsewhere; it is drawn between blocks only, never while one is measured."""
    if not err.is_terminal:
        yield lambda done, total, text: err.print(text, markup=False)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeRemainingColumn())
    with Progress(*columns, console=err, auto_refresh=False, transient=True) as bar:
        task = bar.add_task("", total=None)

        def draw(done: int, total: int, text: str) -> None:
            bar.update(task, description=text, completed=done, total=total or None)
            bar.refresh()

        yield draw
