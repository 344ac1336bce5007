"""Tables of formatted text, shared by terminal, Markdown and HTML."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgetl.core.untrusted_text import escape_control_characters

_TAG_START = re.compile(r"<(?=[A-Za-z/!?])")


@dataclass(frozen=True)
class TextTable:
    """A table whose cells are formatted text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    text_columns: tuple[str, ...] = ()
    """Columns of text besides the first; all others are numeric."""

    def is_text_column(self, column: str) -> bool:
        """Return whether the column holds text and is left-aligned."""
        return column == self.columns[0] or column in self.text_columns


def render_markdown_table(table: TextTable) -> str:
    """Render a table with its title and note as Markdown."""
    rules = ["---" if table.is_text_column(column) else "---:" for column in table.columns]
    lines = [
        f"## {escape_markdown(table.title)}",
        "",
        "| " + " | ".join(map(_escape_cell, table.columns)) + " |",
        "| " + " | ".join(rules) + " |",
        *("| " + " | ".join(map(_escape_cell, row)) + " |" for row in table.rows),
    ]
    return "\n".join([*lines, "", table.note] if table.note else lines)


def escape_markdown(text: str) -> str:
    """Escape control characters and HTML tags, and join lines."""
    return _TAG_START.sub("&lt;", escape_control_characters(text)).replace("\n", " ")


def _escape_cell(text: str) -> str:
    return escape_markdown(text).replace("|", "\\|")
