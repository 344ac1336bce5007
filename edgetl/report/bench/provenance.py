"""What the figures rest on: the devices side by side, and how each result was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from edgetl.core.artifacts.bench import BenchResult
from edgetl.core.formatting import MISSING, milliseconds
from edgetl.report.html.blocks import (
    Badge,
    Cell,
    Column,
    Section,
    TableRow,
    bullets,
    facts,
    folded,
    heading,
    paragraph,
    table,
)
from edgetl.report.html.text import (
    OUTCOME_TONES,
    full_name,
    input_shape,
    interval,
    mib,
    noise_badge,
    text_of,
    titles,
    told_cell,
    verdict_badge,
)

_APART = ("before", "after", "packages")


def ledger_section(results: Sequence[BenchResult]) -> Section:
    """Facts about the devices, their state before and after, and the packages; what differs is marked."""
    named = titles(results)
    fixed = [
        {name: value for name, value in result.device.items() if name not in _APART}
        for result in results
    ]
    blocks = [_side_by_side("The devices", named, fixed)]
    packages = [dict(result.device.get("packages") or {}) for result in results]
    if any(packages):
        blocks.append(_side_by_side("Packages", named, packages))
    for title, result in zip(named, results, strict=True):
        states = [_flat(result.device.get(when) or {}) for when in ("before", "after")]
        if any(states):
            block = _side_by_side(
                f"State before and after: {title}", ["before", "after"], states, marked=False
            )
            blocks.append(folded(f"State before and after: {title}", [block]))
        measured = _flat(result.noise.measured)
        if measured:
            pairs = [(name, told_cell(value)) for name, value in measured.items()]
            blocks.append(
                folded(
                    f"What the noise verdict rests on: {title}",
                    [facts([("verdict", Cell("", badges=(noise_badge(result),))), *pairs])],
                )
            )
    marks = "Marked rows differ between the results. " if len(results) > 1 else ""
    blocks.insert(0, paragraph(f"{marks}{MISSING}: not told, the device does not say.", "note"))
    return Section("ledgers", "Devices and software", tuple(blocks))


def method_section(results: Sequence[BenchResult]) -> Section:
    """Protocol, order, versions, hashes, notes and limits of each result."""
    blocks: list[Markup] = []
    for title, result in zip(titles(results), results, strict=True):
        blocks += [heading(title), facts(_general(result))]
        if result.judged:
            blocks.append(_limits(result))
        if result.notes:
            blocks += [paragraph("Notes"), bullets(result.notes)]
        if result.comparisons:
            blocks.append(folded("All comparisons", [_comparisons(result)]))
        blocks.append(folded("Files, inputs and sessions", [_files(result)]))
        if result.order:
            numbered = [
                f"Round {number}: {', '.join(names)}"
                for number, names in enumerate(result.order, 1)
            ]
            blocks.append(folded("Order of the rounds", [bullets(numbered)]))
    return Section("method", "How it was measured", tuple(blocks))


def _general(result: BenchResult) -> list[tuple[str, Cell]]:
    pairs = [
        ("measured", Cell(result.created)),
        ("edgetl", Cell(result.edgetl)),
        ("target", Cell(result.target)),
        ("run", told_cell(result.model.get("run_id"))),
        ("result file", told_cell(None if result.path is None else result.path.name)),
        (
            "rounds",
            Cell(
                f"{len(result.order)} of {result.protocol.get('rounds', MISSING)}, interrupted"
                if result.interrupted
                else str(len(result.order))
            ),
        ),
    ]
    rest = {name: value for name, value in result.protocol.items() if name != "rounds"}
    return [
        *pairs,
        *((name.replace("_", " "), told_cell(value)) for name, value in _flat(rest).items()),
    ]


def _limits(result: BenchResult) -> Markup:
    columns = [Column("limit", "short"), Column("outcome", "short"), Column("why")]
    rows = [
        TableRow(
            (
                Cell(judged.limit),
                Cell("", badges=(Badge(judged.outcome, OUTCOME_TONES[judged.outcome]),)),
                Cell(judged.why),
            )
        )
        for judged in result.judged
    ]
    return table("Limits judged", columns, rows)


def _comparisons(result: BenchResult) -> Markup:
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
            f"{pair.speedup.ratio:.2f}× {interval(pair.speedup.low, pair.speedup.high, 2)}",
        )
        if pair.earlier is not None:
            earlier = pair.earlier
            told = f"{earlier.created}: p50 {milliseconds(earlier.p50_ms)} ms, {earlier.labels}"
        cells = (
            Cell(pair.candidate),
            Cell(pair.baseline),
            Cell(ratio),
            Cell("", badges=(verdict_badge(pair.verdict),)),
            Cell(told),
        )
        rows.append(TableRow(cells))
    return table("Speed-up = baseline p50 / candidate p50", columns, rows)


def _files(result: BenchResult) -> Markup:
    columns = [
        Column("row"),
        Column("scope", "short"),
        Column("input", "short"),
        Column("session"),
        Column("file SHA-256", "mono"),
    ]
    rows = []
    for row in result.rows:
        session = "; ".join(f"{name} {text_of(value)}" for name, value in row.session.items())
        cells = (
            Cell(full_name(row)),
            Cell(row.scope),
            Cell(input_shape(row)),
            Cell(session),
            Cell(row.file_sha256),
        )
        rows.append(TableRow(cells))
    return table("What was run", columns, rows)


def _side_by_side(
    label: str, names: Sequence[str], told: Sequence[Mapping[str, Any]], marked: bool = True
) -> Markup:
    keys = list(dict.fromkeys(name for facts_ in told for name in facts_))
    rows = []
    for key in keys:
        values = [facts_.get(key) for facts_ in told]
        differs = marked and any(value != values[0] for value in values)
        shown = [_value_cell(key, value) for value in values]
        name = Cell(
            key.removesuffix("_bytes").replace("_", " "),
            badges=(Badge("differs", "warn"),) if differs else (),
        )
        rows.append(TableRow((name, *shown), "differs" if differs else ""))
    return table(label, [Column(""), *(Column(name) for name in names)], rows)


def _value_cell(key: str, value: Any) -> Cell:
    """Write sizes as MiB. An empty list of reasons or processes is a fact, not a gap."""
    if key.endswith("_bytes") and isinstance(value, int | float):
        return Cell(f"{mib(value)} MiB")
    if key.endswith("_bytes") and isinstance(value, list):
        return Cell(", ".join(f"{mib(size)} MiB" for size in value) or MISSING)
    if key.endswith(("throttle_reasons", "processes")) and value == []:
        return Cell("none")
    return told_cell(value)


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one level: `pressure us, cpu`."""
    found: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{name}: ")
        else:
            found[f"{prefix}{name}"] = value
    return found
