"""Section of accuracy against latency in the benchmark report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from markupsafe import Markup

from edgetl.core.artifacts.bench import BenchResult
from edgetl.core.artifacts.bench_rows import BenchRow
from edgetl.core.formatting import pluralize
from edgetl.report.charts.runtimes import RuntimePanel, draw_runtimes
from edgetl.report.html.blocks import Section, grid, paragraph
from edgetl.report.html.text import (
    ResultRowPair,
    device_and_host,
    input_shape,
    join_words,
    model_key,
    model_name,
)

_MAX_PANELS_PER_DRAWING = 4


def runtimes_section(results: Sequence[BenchResult]) -> Section:
    """Draw accuracy against p50 by device, model and threads; empty with fewer than two points.

    Rows that failed the gate have no latency and are not drawn. The section shows the scope and
    the batch size that most rows share; the others are in the table of all results.
    """
    timed = [
        (result, row)
        for result in results
        for row in result.rows
        if row.rounds and row.rate is None and row.runtime != "pytorch"
    ]
    entries = _select_largest_group([entry for entry in timed if entry[1].accuracy is not None])
    if len(entries) < 2:
        return Section("accuracy", "Accuracy and latency", ())
    scope, batch = _conditions(entries[0][1])
    title = f"Accuracy against latency, scope {scope}, batch {batch}"
    panels = list(_group_panels(entries))
    parts = [
        panels[start : start + _MAX_PANELS_PER_DRAWING]
        for start in range(0, len(panels), _MAX_PANELS_PER_DRAWING)
    ]
    figures = [
        draw_runtimes(title if len(parts) == 1 else f"{title} ({number} of {len(parts)})", part)
        for number, part in enumerate(parts, 1)
    ]
    blocks: list[Markup] = [grid("figures", figures)]
    names = [
        row.name for _, row in timed if row.accuracy is None and _conditions(row) == (scope, batch)
    ]
    if names:
        missing = join_words(list(dict.fromkeys(names)))
        text = f"Not drawn, because their accuracy is not recorded: {missing}."
        blocks.append(paragraph(text, "note"))
    return Section("accuracy", "Accuracy and latency", tuple(blocks))


def _conditions(row: BenchRow) -> tuple[str, int]:
    return row.scope, row.batch


def _select_largest_group(entries: Iterable[ResultRowPair]) -> list[ResultRowPair]:
    """Return the entries of the scope and batch size that most share; the first if several do."""
    groups: dict[tuple[str, int], list[ResultRowPair]] = {}
    for entry in entries:
        groups.setdefault(_conditions(entry[1]), []).append(entry)
    return max(groups.values(), key=len, default=[])


def _group_panels(entries: Sequence[ResultRowPair]) -> Iterator[RuntimePanel]:
    """Yield a panel for each device, model, input and number of threads."""
    several_models = len({model_key(*entry) for entry in entries}) > 1
    several_inputs = len({input_shape(row) for _, row in entries}) > 1
    groups: dict[tuple[str, str, str, int], list[ResultRowPair]] = {}
    for result, row in entries:
        device = device_and_host(result.device)
        key = (device, model_key(result, row), input_shape(row), row.threads)
        groups.setdefault(key, []).append((result, row))
    for (device, _, shape, threads), group in groups.items():
        parts = [
            model_name(group[0][0]) if several_models else "",
            device,
            pluralize(threads, "thread"),
            shape if several_inputs else "",
        ]
        recommended = tuple(row for result, row in group if result.is_recommended(row))
        yield RuntimePanel(
            ", ".join(filter(None, parts)), tuple(row for _, row in group), recommended
        )
