"""An experiment's tables as Markdown."""

from __future__ import annotations

from edgetl.core.experiment import Experiment
from edgetl.core.outside_text import visible
from edgetl.report.compare_tables import TextTable, all_tables, conclusions


def compare_markdown(found: Experiment) -> str:
    """The whole of compare.md."""
    said = "\n".join(f"- {sentence}" for sentence in conclusions(found))
    counts = found.data.get("counts", {})
    shown = ", ".join(f"{sum(classes.values())} {part} images" for part, classes in counts.items())
    images = f"{found.data.get('folder', '')}: {len(found.classes)} classes, {shown}."
    lead = f"{images} {found.device.get('cpu') or 'unknown CPU'}; {found.created}."
    return (
        "\n\n".join(
            ["# Transfer learning on your images", lead, said, *map(_table, all_tables(found))]
        )
        + "\n"
    )


def _table(table: TextTable) -> str:
    lines = [
        f"## {table.title}",
        "",
        "| " + " | ".join(map(_cell, table.columns)) + " |",
        "| "
        + " | ".join("---" if table.is_words(column) else "---:" for column in table.columns)
        + " |",
        *("| " + " | ".join(map(_cell, row)) + " |" for row in table.rows),
    ]
    return "\n".join([*lines, "", table.note] if table.note else lines)


def _cell(text: str) -> str:
    return visible(text).replace("|", "\\|").replace("\n", " ")
