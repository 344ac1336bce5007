"""Device and method sections of the benchmark report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from edgetl.core.artifacts.bench import BenchResult
from edgetl.core.formatting import MISSING_VALUE, format_milliseconds
from edgetl.core.typed_json import to_json
from edgetl.report.html.blocks import (
    Badge,
    Cell,
    Column,
    Section,
    TableRow,
    bullets,
    definition_list,
    details,
    heading,
    paragraph,
    table,
)
from edgetl.report.html.text import (
    OUTCOME_TONES,
    format_interval,
    format_mib,
    format_value,
    full_row_name,
    input_shape,
    noise_badge,
    result_titles,
    value_cell,
    verdict_badge,
)

_SEPARATE_KEYS = ("before", "after", "packages")
"""Fields of `DeviceInfo` with a table of their own."""


def devices_section(results: Sequence[BenchResult]) -> Section:
    """Compare the devices side by side: facts, packages, state before and after, noise checks.

    Values that differ between results are marked.
    """
    titles = result_titles(results)
    marks = "Marked rows differ between the results. " if len(results) > 1 else ""
    blocks = [paragraph(f"{marks}{MISSING_VALUE}: not reported by the device.", "note")]
    facts = [
        {
            name: value
            for name, value in to_json(result.device).items()
            if name not in _SEPARATE_KEYS
        }
        for result in results
    ]
    blocks.append(_side_by_side_table("Devices", titles, facts))
    packages = [result.device.packages for result in results]
    if any(packages):
        blocks.append(_side_by_side_table("Packages", titles, packages))
    for title, result in zip(titles, results, strict=True):
        blocks += _device_state_blocks(title, result)
    return Section("ledgers", "Devices and software", tuple(blocks))


def _device_state_blocks(title: str, result: BenchResult) -> list[Markup]:
    blocks = []
    device = result.device
    states = [
        {} if state is None else _flatten(to_json(state)) for state in (device.before, device.after)
    ]
    if any(states):
        label = f"State before and after: {title}"
        state_table = _side_by_side_table(label, ["before", "after"], states, mark=False)
        blocks.append(details(label, [state_table]))
    measured = _flatten(to_json(result.noise.measured))
    if any(value not in (None, {}) for value in measured.values()):
        pairs = [("verdict", Cell("", badges=(noise_badge(result),)))]
        pairs += [(name, value_cell(value)) for name, value in measured.items()]
        blocks.append(details(f"Noise measurements: {title}", [definition_list(pairs)]))
    return blocks


def method_section(results: Sequence[BenchResult]) -> Section:
    """List the protocol, limits, notes, comparisons, files and order of rounds of each result."""
    blocks: list[Markup] = []
    for title, result in zip(result_titles(results), results, strict=True):
        blocks += [heading(title), definition_list(_protocol_facts(result))]
        if result.limit_checks:
            blocks.append(_limits_table(result))
        if result.notes:
            blocks += [paragraph("Notes"), bullets(result.notes)]
        if result.comparisons:
            blocks.append(details("All comparisons", [_comparisons_table(result)]))
        blocks.append(details("Files, inputs and sessions", [_sessions_table(result)]))
        if result.order:
            rounds = [
                f"Round {number}: {', '.join(names)}"
                for number, names in enumerate(result.order, 1)
            ]
            blocks.append(details("Order of the rounds", [bullets(rounds)]))
    return Section("method", "Method", tuple(blocks))


def _protocol_facts(result: BenchResult) -> list[tuple[str, Cell]]:
    rounds = str(len(result.order))
    if result.interrupted:
        planned = result.protocol.get("rounds", MISSING_VALUE)
        rounds = f"{rounds} of {planned}, interrupted"
    pairs = [
        ("measured", Cell(result.created)),
        ("edgetl", Cell(result.edgetl)),
        ("target", Cell(result.target)),
        ("run", value_cell(result.model.run_id)),
        ("result file", value_cell(None if result.path is None else result.path.name)),
        ("rounds", Cell(rounds)),
    ]
    protocol = {name: value for name, value in result.protocol.items() if name != "rounds"}
    pairs += [
        (name.replace("_", " "), value_cell(value)) for name, value in _flatten(protocol).items()
    ]
    return pairs


def _limits_table(result: BenchResult) -> Markup:
    columns = [Column("limit", "short"), Column("outcome", "short"), Column("reason")]
    rows = [
        TableRow(
            (
                Cell(check.limit),
                Cell("", badges=(Badge(check.outcome, OUTCOME_TONES[check.outcome]),)),
                Cell(check.why),
            )
        )
        for check in result.limit_checks
    ]
    return table("Limits", columns, rows)


def _comparisons_table(result: BenchResult) -> Markup:
    columns = [
        Column("candidate"),
        Column("baseline"),
        Column("speed-up [95%]", "short"),
        Column("verdict", "short"),
        Column("baseline from"),
    ]
    rows = []
    for pair in result.comparisons:
        speedup = pair.speedup
        interval = format_interval(speedup.low, speedup.high, 2)
        origin = "the same run"
        if pair.earlier_row is not None:
            earlier = pair.earlier_row
            p50 = format_milliseconds(earlier.p50_ms)
            origin = f"{earlier.created}: p50 {p50} ms, {earlier.description}"
        cells = (
            Cell(pair.candidate),
            Cell(pair.baseline),
            Cell(f"{speedup.ratio:.2f}× {interval}"),
            Cell("", badges=(verdict_badge(pair.verdict),)),
            Cell(origin),
        )
        rows.append(TableRow(cells))
    return table("Speed-up = baseline p50 / candidate p50", columns, rows)


def _sessions_table(result: BenchResult) -> Markup:
    columns = [
        Column("row"),
        Column("scope", "short"),
        Column("input", "short"),
        Column("session"),
        Column("file SHA-256", "mono"),
    ]
    rows = []
    for row in result.rows:
        session = "; ".join(
            f"{name} {format_value(value)}" for name, value in to_json(row.session).items()
        )
        cells = (
            Cell(full_row_name(row)),
            Cell(row.scope),
            Cell(input_shape(row)),
            Cell(session),
            Cell(row.file_sha256),
        )
        rows.append(TableRow(cells))
    return table("Measured rows", columns, rows)


def _side_by_side_table(
    label: str, names: Sequence[str], facts: Sequence[Mapping[str, object]], mark: bool = True
) -> Markup:
    """Build a table with one row per key and one column per mapping; `mark` marks differences."""
    keys = list(dict.fromkeys(key for mapping in facts for key in mapping))
    rows = []
    for key in keys:
        values = [mapping.get(key) for mapping in facts]
        differs = mark and any(value != values[0] for value in values)
        name = Cell(
            key.removesuffix("_bytes").replace("_", " "),
            badges=(Badge("differs", "warn"),) if differs else (),
        )
        cells = [_device_value_cell(key, value) for value in values]
        rows.append(TableRow((name, *cells), "differs" if differs else ""))
    return table(label, [Column(""), *(Column(name) for name in names)], rows)


def _device_value_cell(key: str, value: object) -> Cell:
    """Format one device fact: sizes as MiB; an empty list of reasons or processes as `none`."""
    if key.endswith("_bytes") and isinstance(value, int | float):
        return Cell(f"{format_mib(value)} MiB")
    if key.endswith("_bytes") and isinstance(value, list):
        return Cell(", ".join(f"{format_mib(size)} MiB" for size in value) or MISSING_VALUE)
    if key.endswith(("throttle_reasons", "processes")) and value == []:
        return Cell("none")
    return value_cell(value)


def _flatten(content: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Flatten nested objects to one level, joining keys with `: `."""
    flat: dict[str, object] = {}
    for name, value in content.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{name}: ")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
