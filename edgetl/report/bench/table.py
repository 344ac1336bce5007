"""Table of all rows in the benchmark report, as HTML and as plain text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from edgetl.core.artifacts.bench import BenchResult
from edgetl.core.artifacts.bench_rows import BenchRow
from edgetl.core.artifacts.runtime_comparison import (
    PLAIN_NAME,
    compare_with_plain,
    is_plain,
    list_runtimes,
)
from edgetl.core.formatting import MISSING_VALUE, format_gpu_state, format_milliseconds, pluralize
from edgetl.core.statistics import PERCENTILE_SUPPORT
from edgetl.report.html.blocks import (
    Badge,
    Cell,
    Column,
    RowGroup,
    Section,
    TableRow,
    paragraph,
    table,
)
from edgetl.report.html.text import (
    OTHER_DEVICE_BADGE,
    ResultRowPair,
    accuracy_cell,
    find_baseline_comparison,
    format_mib,
    format_rate,
    input_shape,
    join_words,
    model_key,
    model_name,
    noise_badge,
    p50_cell,
    result_titles,
    speedup_cell,
)
from edgetl.report.text_table import TextTable


def table_section(results: Sequence[BenchResult]) -> Section:
    """Build the table of all rows, grouped so that rows within a group are comparable."""
    groups = _group_entries(results)
    entries = [entry for group in groups for entry in group]
    columns = _visible_columns(results, entries)
    table_rows = [
        row_group
        for number, group in enumerate(groups, 1)
        for row_group in _row_groups(
            f"Group {number}: {_describe_group(group)}", group, results, columns
        )
    ]
    headers = [column.header for column in columns]
    blocks = [
        *map(paragraph, _comparability_notes(results, groups)),
        table("All measured configurations", headers, table_rows),
        paragraph(" ".join(_table_notes(entries)), "note"),
    ]
    return Section("table", "All results", tuple(blocks))


def result_tables(results: Sequence[BenchResult]) -> list[TextTable]:
    """Return the table of all rows as plain text, one for each group of comparable rows."""
    groups = _group_entries(results)
    entries = [entry for group in groups for entry in group]
    columns = _visible_columns(results, entries)
    headings = tuple(column.header.heading for column in columns)
    text_headings = {column.header.heading for column in columns if column.header.kind != "number"}
    titles = [title if len(results) > 1 else "" for title in result_titles(results)]
    notes = " ".join([*_comparability_notes(results, groups), *_table_notes(entries)])
    tables = []
    for group in groups:
        rows = []
        for result, row in group:
            cells = [column.cell((result, row)).plain_text for column in columns]
            index = next(index for index, other in enumerate(results) if other is result)
            rows.append((*filter(None, titles[index : index + 1]), *cells))
        tables.append(
            TextTable(
                _describe_group(group),
                (*(["result"] if len(results) > 1 else []), *headings),
                tuple(rows),
                notes if group is groups[-1] else "",
                tuple(text_headings),
            )
        )
    return tables


def _group_entries(results: Sequence[BenchResult]) -> list[list[ResultRowPair]]:
    """Group the rows of all results by model, scope and input."""
    groups: dict[tuple[str, str, str], list[ResultRowPair]] = {}
    for result in results:
        for row in result.rows:
            key = (model_key(result, row), row.scope, input_shape(row))
            groups.setdefault(key, []).append((result, row))
    return list(groups.values())


def _comparability_notes(
    results: Sequence[BenchResult], groups: Sequence[Sequence[ResultRowPair]]
) -> list[str]:
    notes = []
    if len(groups) > 1:
        notes.append(
            "Rows are comparable within a group only: the groups differ in model, scope or input."
        )
    if any(not result.device.is_same_device(results[0].device) for result in results):
        notes.append(
            "Rows of different devices compare devices, not runtimes. "
            "A speed-up is always measured on one device."
        )
    return notes


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


def _describe_group(group: Sequence[ResultRowPair]) -> str:
    first_result, first_row = group[0]
    models = join_words(list(dict.fromkeys(model_name(result) for result, _ in group)))
    identity = f"file {first_row.file_sha256[:12]}"
    if first_result.model.run_id:
        identity = f"run {first_result.model.run_id}"
    shape = input_shape(first_row) or "unknown"
    return f"{models} ({identity}), scope {first_row.scope}, input {shape}"


def _is_always_visible(_: Sequence[ResultRowPair]) -> bool:
    return True


def _has_accuracy(entries: Sequence[ResultRowPair]) -> bool:
    return any(row.accuracy is not None for _, row in entries)


def _has_several_runtimes(entries: Sequence[ResultRowPair]) -> bool:
    return len(list_runtimes(row for _, row in entries)) > 1


def _has_other_baselines(entries: Sequence[ResultRowPair]) -> bool:
    """Return whether a row has a baseline that has no column."""
    if not _has_several_runtimes(entries):
        return True
    pairs = [find_baseline_comparison(result, row.id) for result, row in entries]
    baselines = [
        result.get_row(pair.baseline)
        for (result, _), pair in zip(entries, pairs, strict=True)
        if pair is not None
    ]
    return not all(map(is_plain, baselines))


@dataclass(frozen=True)
class _EntryColumn:
    """A column of the table of results."""

    header: Column
    cell: Callable[[ResultRowPair], Cell]
    is_visible: Callable[[Sequence[ResultRowPair]], bool] = _is_always_visible


def _visible_columns(
    results: Sequence[BenchResult], entries: Sequence[ResultRowPair]
) -> list[_EntryColumn]:
    return [column for column in _columns(results) if column.is_visible(entries)]


def _columns(results: Sequence[BenchResult]) -> list[_EntryColumn]:
    return [
        _EntryColumn(Column("configuration"), _configuration_cell),
        _EntryColumn(
            Column("precision", "short", "precision that ran, as the runtime reports it"),
            lambda entry: Cell(entry[1].precision or MISSING_VALUE),
            lambda entries: any(
                row.precision is not None and row.runtime != "pytorch" for _, row in entries
            ),
        ),
        _EntryColumn(
            Column("p50 ms", "number", "median latency with its 95% interval"),
            lambda entry: p50_cell(entry[1]),
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
            _has_other_baselines,
        ),
        _EntryColumn(
            Column(
                f"against {PLAIN_NAME}",
                "short",
                f"p50 of {PLAIN_NAME} on this device under the same conditions / p50",
            ),
            lambda entry: _plain_speedup_cell(entry, results),
            _has_several_runtimes,
        ),
        _EntryColumn(
            Column(
                "accuracy", "short", "top-1 accuracy, measured at export, with its 95% interval"
            ),
            lambda entry: accuracy_cell(entry[1].accuracy),
            _has_accuracy,
        ),
        _EntryColumn(
            Column("flips", "number", "images whose label differs from PyTorch's"),
            lambda entry: _flips_cell(entry[1]),
            _has_accuracy,
        ),
        *_resource_columns(),
        _EntryColumn(
            Column("golden images", "short", "gate: the check on the golden images before timing"),
            lambda entry: _gate_cell(entry[1]),
        ),
    ]


def _resource_columns() -> list[_EntryColumn]:
    return [
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
    ]


def _percentile_cell(row: BenchRow, percent: int) -> Cell:
    value = row.percentile_ms(percent)
    tooltip = ""
    if value is None:
        tooltip = "not timed"
        if row.rounds:
            tooltip = f"withheld: {len(row.latencies_ns)} runs are too few for p{percent}"
    return Cell(format_milliseconds(value), tooltip=tooltip)


def _configuration_cell(entry: ResultRowPair) -> Cell:
    result, row = entry
    parts = [row.provider, f"batch {row.batch}", pluralize(row.threads, "thread")]
    if row.rate is not None:
        parts.append(f"{row.rate:g} arrivals/s, {row.waiting_share:.0%} of them queued")
    badges = (Badge("recommended", "good"),) if result.is_recommended(row) else ()
    return Cell(row.name, small=", ".join(parts), badges=badges)


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


def _plain_speedup_cell(entry: ResultRowPair, results: Sequence[BenchResult]) -> Cell:
    result, row = entry
    if row.has_failed_gate:
        return Cell("", badges=(Badge("failed", "bad"),))
    if is_plain(row):
        return Cell("1", small="baseline")
    comparison = compare_with_plain(result, row, results)
    if comparison is None:
        return Cell(MISSING_VALUE, tooltip="not measured under the same conditions")
    cell = speedup_cell(comparison)
    if comparison.earlier_row is not None:
        return replace(cell, tooltip="measured in another result, in different rounds")
    return cell


def _flips_cell(row: BenchRow) -> Cell:
    if row.accuracy is None:
        return Cell(MISSING_VALUE, tooltip="not recorded")
    return Cell(str(row.accuracy.flips), small=f"of {row.accuracy.images}")


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
