"""What the figures rest on: the devices side by side, and how each result was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from edgetl.core.artifacts.bench import BenchResult
from edgetl.core.formatting import MISSING_VALUE, format_milliseconds
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


def devices_section(results: Sequence[BenchResult]) -> Section:
    """Facts about the devices, their state before and after, and the packages; what differs is marked."""
    named = result_titles(results)
    fixed = [
        {name: value for name, value in result.device.items() if name not in _SEPARATE_KEYS}
        for result in results
    ]
    blocks = [_side_by_side_table("The devices", named, fixed)]
    packages = [dict(result.device.get("packages") or {}) for result in results]
    if any(packages):
        blocks.append(_side_by_side_table("Packages", named, packages))
    for title, result in zip(named, results, strict=True):
        states = [_flatten(result.device.get(when) or {}) for when in ("before", "after")]
        if any(states):
            block = _side_by_side_table(
                f"State before and after: {title}", ["before", "after"], states, marked=False
            )
            blocks.append(details(f"State before and after: {title}", [block]))
        measured = _flatten(result.noise.measured)
        if measured:
            pairs = [(name, value_cell(value)) for name, value in measured.items()]
            blocks.append(
                details(
                    f"What the noise verdict rests on: {title}",
                    [
                        definition_list(
                            [("verdict", Cell("", badges=(noise_badge(result),))), *pairs]
                        )
                    ],
                )
            )
    marks = "Marked rows differ between the results. " if len(results) > 1 else ""
    blocks.insert(
        0, paragraph(f"{marks}{MISSING_VALUE}: not told, the device does not say.", "note")
    )
    return Section("ledgers", "Devices and software", tuple(blocks))


def method_section(results: Sequence[BenchResult]) -> Section:
    """Protocol, order, versions, hashes, notes and limits of each result."""
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
            numbered = [
                f"Round {number}: {', '.join(names)}"
                for number, names in enumerate(result.order, 1)
            ]
            blocks.append(details("Order of the rounds", [bullets(numbered)]))
    return Section("method", "How it was measured", tuple(blocks))


def _protocol_facts(result: BenchResult) -> list[tuple[str, Cell]]:
    pairs = [
        ("measured", Cell(result.created)),
        ("edgetl", Cell(result.edgetl)),
        ("target", Cell(result.target)),
        ("run", value_cell(result.model.get("run_id"))),
        ("result file", value_cell(None if result.path is None else result.path.name)),
        (
            "rounds",
            Cell(
                f"{len(result.order)} of {result.protocol.get('rounds', MISSING_VALUE)}, interrupted"
                if result.interrupted
                else str(len(result.order))
            ),
        ),
    ]
    rest = {name: value for name, value in result.protocol.items() if name != "rounds"}
    return [
        *pairs,
        *((name.replace("_", " "), value_cell(value)) for name, value in _flatten(rest).items()),
    ]


def _limits_table(result: BenchResult) -> Markup:
    columns = [Column("limit", "short"), Column("outcome", "short"), Column("why")]
    rows = [
        TableRow(
            (
                Cell(judged.limit),
                Cell("", badges=(Badge(judged.outcome, OUTCOME_TONES[judged.outcome]),)),
                Cell(judged.why),
            )
        )
        for judged in result.limit_checks
    ]
    return table("Limits judged", columns, rows)


def _comparisons_table(result: BenchResult) -> Markup:
    columns = [
        Column("candidate"),
        Column("baseline"),
        Column("speed-up [95%]", "short"),
        Column("verdict", "short"),
        Column("baseline of"),
    ]
    rows = []
    for pair in result.comparisons:
        told, ratio = (
            "the same run",
            f"{pair.speedup.ratio:.2f}× {format_interval(pair.speedup.low, pair.speedup.high, 2)}",
        )
        if pair.earlier_row is not None:
            earlier = pair.earlier_row
            told = f"{earlier.created}: p50 {format_milliseconds(earlier.p50_ms)} ms, {earlier.description}"
        cells = (
            Cell(pair.candidate),
            Cell(pair.baseline),
            Cell(ratio),
            Cell("", badges=(verdict_badge(pair.verdict),)),
            Cell(told),
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
        session = "; ".join(f"{name} {format_value(value)}" for name, value in row.session.items())
        cells = (
            Cell(full_row_name(row)),
            Cell(row.scope),
            Cell(input_shape(row)),
            Cell(session),
            Cell(row.file_sha256),
        )
        rows.append(TableRow(cells))
    return table("What was run", columns, rows)


def _side_by_side_table(
    label: str, names: Sequence[str], told: Sequence[Mapping[str, Any]], marked: bool = True
) -> Markup:
    keys = list(dict.fromkeys(name for facts_ in told for name in facts_))
    rows = []
    for key in keys:
        values = [facts_.get(key) for facts_ in told]
        differs = marked and any(value != values[0] for value in values)
        shown = [_device_value_cell(key, value) for value in values]
        name = Cell(
            key.removesuffix("_bytes").replace("_", " "),
            badges=(Badge("differs", "warn"),) if differs else (),
        )
        rows.append(TableRow((name, *shown), "differs" if differs else ""))
    return table(label, [Column(""), *(Column(name) for name in names)], rows)


def _device_value_cell(key: str, value: Any) -> Cell:
    """Write sizes as MiB. An empty list of reasons or processes is a fact, not a gap."""
    if key.endswith("_bytes") and isinstance(value, int | float):
        return Cell(f"{format_mib(value)} MiB")
    if key.endswith("_bytes") and isinstance(value, list):
        return Cell(", ".join(f"{format_mib(size)} MiB" for size in value) or MISSING_VALUE)
    if key.endswith(("throttle_reasons", "processes")) and value == []:
        return Cell("none")
    return value_cell(value)


def _flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one level: `pressure us, cpu`."""
    found: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping) and value:
            found |= _flatten(value, f"{prefix}{name}: ")
        else:
            found[f"{prefix}{name}"] = value
    return found
