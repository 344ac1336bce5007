"""`edgetl bench --host`: several devices as they go on, and what became of each."""

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

from edgetl.cli.console import err, out, print_json
from edgetl.core.files import SCHEMA
from edgetl.core.formatting import describe_device, format_duration, format_milliseconds

if TYPE_CHECKING:
    from edgetl.core.config.bench import BenchConfig
    from edgetl.fleet.bench import HostResult

_WAITING, _MAX_LINE_LENGTH = "waiting", 70


class PlainFleetProgress:
    """A line for each step; the devices' own words only where one fails."""

    def on_step(self, host: str, name: str) -> None:
        """Print it."""
        err.print(f"{host}: {name}", markup=False, soft_wrap=True)

    def on_output(self, host: str, line: str) -> None:
        """Nothing."""

    def on_host_end(self, outcome: HostResult) -> None:
        """Print what became of it."""
        err.print(
            f"{outcome.host}: {describe_host_result(outcome)}, after {format_duration(outcome.seconds)}",
            markup=False,
            soft_wrap=True,
        )


class LiveFleetProgress:
    """A row for each host, drawn anew twice a second."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._start_time = time.monotonic()
        self._host_states: dict[str, tuple[str, str]] = dict.fromkeys(hosts, (_WAITING, ""))
        self._results: dict[str, HostResult] = {}
        self._lock = threading.Lock()

    def on_step(self, host: str, name: str) -> None:
        """Show it."""
        with self._lock:
            self._host_states[host] = name, ""

    def on_output(self, host: str, line: str) -> None:
        """Show the last of the device's words."""
        with self._lock:
            self._host_states[host] = self._host_states[host][0], line[:_MAX_LINE_LENGTH]

    def on_host_end(self, outcome: HostResult) -> None:
        """Show what became of it."""
        with self._lock:
            self._results[outcome.host] = outcome

    def __rich__(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("host", "time", "step", ""):
            table.add_column(name, no_wrap=True)
        with self._lock:
            for host, (step, words) in self._host_states.items():
                outcome = self._results.get(host)
                seconds = (
                    time.monotonic() - self._start_time if outcome is None else outcome.seconds
                )
                told = (
                    Text(step, style="dim" if step == _WAITING else "")
                    if outcome is None
                    else _status_text(outcome)
                )
                table.add_row(
                    host,
                    format_duration(seconds),
                    told,
                    Text("" if outcome else words, style="dim"),
                )
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
    """Measure on every host and show what came; exits with 1 where one failed, else as `edgetl bench` does by limits."""
    from edgetl.fleet.bench import bench_hosts

    with _open_fleet_progress(hosts) as watcher:
        outcomes = bench_hosts(config, hosts, wheels, watcher)
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
    statuses = {outcome.status for outcome in outcomes if not outcome.failure}
    worst = (
        1
        if any(outcome.failure for outcome in outcomes)
        else 4
        if 4 in statuses
        else 5
        if 5 in statuses
        else 0
    )
    if worst:
        raise typer.Exit(worst)


def describe_host_result(outcome: HostResult) -> str:
    """What became of a host, in a few words."""
    if outcome.failure:
        return f"failed: {outcome.failure}"
    return {4: "measured, a limit is broken", 5: "measured, a limit is undecided"}.get(
        outcome.status or 0, "measured"
    )


def _latency_table(outcomes: Sequence[HostResult]) -> Table:
    from edgetl.cli.bench_tables import plain_table

    table = plain_table()
    for name in ("host", "device", "variant", "scope"):
        table.add_column(name)
    for name in ("batch", "threads", "p50 ms", "95%", "p99 ms", "images/s"):
        table.add_column(name, justify="right")
    table.add_column("noise")
    for outcome in outcomes:
        rows = outcome.result.rows if outcome.result is not None else ()
        for number, row in enumerate(rows):
            assert outcome.result is not None
            interval = " to ".join(map(format_milliseconds, row.p50_interval_ms or ()))
            rate = "" if row.images_per_second is None else f"{row.images_per_second:.1f}"
            first = (
                (outcome.host, describe_device(outcome.result.device)) if not number else ("", "")
            )
            figures = (
                format_milliseconds(row.percentile_ms(50)),
                interval,
                format_milliseconds(row.percentile_ms(99)),
                rate,
            )
            told = (
                "failed"
                if row.has_failed_gate
                else "noisy"
                if outcome.result.noise.is_noisy
                else "quiet"
            )
            table.add_row(
                *(
                    Text(cell)
                    for cell in (
                        *first,
                        row.variant,
                        row.scope,
                        str(row.batch),
                        str(row.threads),
                        *figures,
                        told,
                    )
                )
            )
    return table


def _status_text(outcome: HostResult) -> Text:
    style = "bold red" if outcome.failure else "yellow" if outcome.status else "green"
    return Text("failed" if outcome.failure else describe_host_result(outcome), style=style)


def _show_host_results(outcomes: Sequence[HostResult]) -> None:
    from edgetl.cli.bench_tables import plain_table

    results = [outcome.result for outcome in outcomes if outcome.result is not None]
    if results:
        out.print(_latency_table(outcomes))
        out.print()
    table = plain_table()
    for name in ("host", "outcome", "time", "result"):
        table.add_column(name, overflow="fold")
    for outcome in outcomes:
        kept = str(outcome.result.path) if outcome.result is not None else ""
        table.add_row(
            outcome.host, _status_text(outcome), format_duration(outcome.seconds), Text(kept)
        )
    out.print(table)
    for outcome in outcomes:
        if outcome.failure:
            out.print(f"{outcome.host}: {outcome.failure}", markup=False, soft_wrap=True)
        if outcome.leftover_folder:
            out.print(
                f"{outcome.host}: {outcome.leftover_folder} may still be there; remove it when the host is back.",
                markup=False,
                soft_wrap=True,
            )
    if len(results) > 1:
        paths = " ".join(str(result.path) for result in results)
        out.print(f"One page of all: edgetl report {paths}", markup=False, soft_wrap=True)
