"""`edgetl bench --host`: progress and results of several hosts."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from edgetl.cli.console import err, out, plain_table, print_json
from edgetl.cli.exit_codes import ExitCode
from edgetl.core.files import SCHEMA
from edgetl.core.formatting import format_duration, format_milliseconds

if TYPE_CHECKING:
    from edgetl.core.config.bench import BenchConfig
    from edgetl.fleet.bench import HostResult

_WAITING = "waiting"
_MAX_LINE_LENGTH = 70


class PlainFleetProgress:
    """Print one line per step. The output of a host is shown only if it fails."""

    def on_step(self, host: str, name: str) -> None:
        """Print the step."""
        err.print(f"{host}: {name}", markup=False, soft_wrap=True)

    def on_output(self, host: str, line: str) -> None:
        """Ignore the output of a host."""

    def on_host_end(self, outcome: HostResult) -> None:
        """Print the outcome and the elapsed time."""
        elapsed = format_duration(outcome.seconds)
        err.print(
            f"{outcome.host}: {describe_host_result(outcome)}, after {elapsed}",
            markup=False,
            soft_wrap=True,
        )


class LiveFleetProgress:
    """Live table with one row per host, redrawn twice a second."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._start_time = time.monotonic()
        self._host_states: dict[str, tuple[str, str]] = dict.fromkeys(hosts, (_WAITING, ""))
        self._results: dict[str, HostResult] = {}
        self._lock = threading.Lock()

    def on_step(self, host: str, name: str) -> None:
        """Show the step in the host's row."""
        with self._lock:
            self._host_states[host] = name, ""

    def on_output(self, host: str, line: str) -> None:
        """Show the last line of output in the host's row."""
        with self._lock:
            self._host_states[host] = self._host_states[host][0], line[:_MAX_LINE_LENGTH]

    def on_host_end(self, outcome: HostResult) -> None:
        """Show the outcome in the host's row."""
        with self._lock:
            self._results[outcome.host] = outcome

    def __rich__(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("host", "time", "step", ""):
            table.add_column(name, no_wrap=True)
        with self._lock:
            for host, (step, last_line) in self._host_states.items():
                outcome = self._results.get(host)
                if outcome is None:
                    seconds = time.monotonic() - self._start_time
                    status = Text(step, style="dim" if step == _WAITING else "")
                    output = Text(last_line, style="dim")
                else:
                    seconds = outcome.seconds
                    status = _status_text(outcome)
                    output = Text("", style="dim")
                table.add_row(host, format_duration(seconds), status, output)
        return table


@contextmanager
def _open_fleet_progress(hosts: Sequence[str]) -> Iterator[PlainFleetProgress | LiveFleetProgress]:
    if not err.is_terminal:
        yield PlainFleetProgress()
        return
    table = LiveFleetProgress(hosts)
    with Live(table, console=err, refresh_per_second=2, transient=True):
        yield table


def run_hosts(
    config: BenchConfig, hosts: Sequence[str], wheels: Path | None, as_json: bool
) -> None:
    """Measure on every host and print the results.

    Exits with code 1 if a host failed, otherwise with the worst code of a host.
    """
    from edgetl.fleet.bench import bench_hosts

    with _open_fleet_progress(hosts) as progress:
        outcomes = bench_hosts(config, hosts, wheels, progress)
    if as_json:
        print_json(
            {
                "schema": SCHEMA,
                "kind": "fleet",
                "hosts": [outcome.to_json() for outcome in outcomes],
            }
        )
    else:
        _show_host_results(outcomes)
    if code := _fleet_exit_code(outcomes):
        raise typer.Exit(code)


def _fleet_exit_code(outcomes: Sequence[HostResult]) -> ExitCode:
    if any(outcome.failure for outcome in outcomes):
        return ExitCode.USER_ERROR
    statuses = {outcome.status for outcome in outcomes}
    from_worst = (ExitCode.FAILED_CHECK, ExitCode.UNDECIDED)
    return next((code for code in from_worst if code in statuses), ExitCode.OK)


def describe_host_result(outcome: HostResult) -> str:
    """Describe the outcome of a host in a few words."""
    if outcome.failure:
        return f"failed: {outcome.failure}"
    if outcome.status == ExitCode.FAILED_CHECK:
        return "measured, a limit is broken"
    if outcome.status == ExitCode.UNDECIDED:
        return "measured, a limit is undecided"
    return "measured"


def _latency_table(outcomes: Sequence[HostResult]) -> Table:
    table = plain_table()
    for name in ("host", "device", "runtime, variant", "scope"):
        table.add_column(name)
    for name in ("batch", "threads", "p50 ms", "95%", "p99 ms", "images/s"):
        table.add_column(name, justify="right")
    table.add_column("noise")
    for outcome in outcomes:
        rows = outcome.result.rows if outcome.result is not None else ()
        for index, row in enumerate(rows):
            assert outcome.result is not None
            noise = "noisy" if outcome.result.noise.is_noisy else "quiet"
            if row.has_failed_gate:
                noise = "failed"
            cells = (
                outcome.host if index == 0 else "",
                outcome.result.device.description if index == 0 else "",
                row.name,
                row.scope,
                str(row.batch),
                str(row.threads),
                format_milliseconds(row.percentile_ms(50)),
                " to ".join(map(format_milliseconds, row.p50_interval_ms or ())),
                format_milliseconds(row.percentile_ms(99)),
                "" if row.images_per_second is None else f"{row.images_per_second:.1f}",
                noise,
            )
            table.add_row(*map(Text, cells))
    return table


def _status_text(outcome: HostResult) -> Text:
    if outcome.failure:
        return Text("failed", style="bold red")
    return Text(describe_host_result(outcome), style="yellow" if outcome.status else "green")


def _show_host_results(outcomes: Sequence[HostResult]) -> None:
    results = [outcome.result for outcome in outcomes if outcome.result is not None]
    if results:
        out.print(_latency_table(outcomes))
        out.print()
    table = plain_table()
    for name in ("host", "outcome", "time", "result"):
        table.add_column(name, overflow="fold")
    for outcome in outcomes:
        path = str(outcome.result.path) if outcome.result is not None else ""
        table.add_row(
            outcome.host, _status_text(outcome), format_duration(outcome.seconds), Text(path)
        )
    out.print(table)
    for outcome in outcomes:
        if outcome.failure:
            out.print(f"{outcome.host}: {outcome.failure}", markup=False, soft_wrap=True)
        if outcome.leftover_folder:
            out.print(
                f"{outcome.host}: {outcome.leftover_folder} may not have been removed. "
                "Delete it when the host is reachable again.",
                markup=False,
                soft_wrap=True,
            )
    if len(results) > 1:
        paths = " ".join(str(result.path) for result in results)
        out.print(f"Report of all hosts: edgetl report {paths}", markup=False, soft_wrap=True)
