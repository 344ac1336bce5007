"""An experiment's tables as Markdown."""

from __future__ import annotations

from edgetl.core.experiment import Experiment
from edgetl.report.compare_tables import TextTable, conclusions, equal_time, results, timed_before, trade_off, verdicts


def compare_markdown(found: Experiment) -> str:
    """The whole of compare.md."""
    networks = found.networks
    before = timed_before(found)
    tables = [
        *([] if before is None else [before]),
        *(table for network in networks for table in (results(found, network), equal_time(found, network)) if table is not None),
        *(table for table in (trade_off(found), verdicts(found)) if table is not None),
    ]
    said = "\n".join(f"- {sentence}" for sentence in conclusions(found))
    counts = found.data.get("counts", {})
    shown = ", ".join(f"{sum(classes.values())} {part} images" for part, classes in counts.items())
    images = f"{found.data.get('folder', '')}: {len(found.classes)} classes, {shown}."
    lead = f"{images} {found.device.get('cpu') or 'unknown CPU'}; {found.created}."
    return "\n\n".join(["# Transfer learning on your images", lead, said, *map(_table, tables)]) + "\n"


def _table(table: TextTable) -> str:
    lines = [
        f"## {table.title}",
        "",
        "| " + " | ".join(map(_cell, table.columns)) + " |",
        "| " + " | ".join("---" if table.is_words(column) else "---:" for column in table.columns) + " |",
        *("| " + " | ".join(map(_cell, row)) + " |" for row in table.rows),
    ]
    return "\n".join([*lines, "", table.note] if table.note else lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
