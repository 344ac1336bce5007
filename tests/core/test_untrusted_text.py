"""Escaping of terminal sequences, direction marks and formulas in untrusted text."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.markup import escape
from rich.table import Table

from edgetl.cli import console
from edgetl.core.files import read_csv, write_csv
from edgetl.core.untrusted_text import (
    escape_control_characters,
    escape_csv_cell,
    escape_json_controls,
    unescape_csv_cell,
)
from edgetl.report.html.blocks import render_page

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31mcat\u202e\r"
DANGEROUS = set(map(chr, [*range(9), 11, 12, 13, *range(14, 32), *range(127, 160), 0x202E, 0x2066]))


@given(st.text())
def test_escaped_text_has_no_control_characters(text: str) -> None:
    assert not DANGEROUS & set(escape_control_characters(text))
    assert escape_control_characters(escape_control_characters(text)) == escape_control_characters(
        text
    )


@given(st.text())
def test_escaped_json_has_same_content(text: str) -> None:
    encoded = escape_json_controls(json.dumps({text: text}, ensure_ascii=False))
    assert not DANGEROUS & set(encoded)
    assert json.loads(encoded) == {text: text}


@given(st.text() | st.text("'=+-@\t\rx", max_size=4))
def test_csv_cell_round_trips_and_is_no_formula(text: str) -> None:
    cell = escape_csv_cell(text)
    assert unescape_csv_cell(cell) == text
    is_number = re.fullmatch(r"[+-][0-9.]+(e[+-]?[0-9]+)?", cell)
    assert is_number or not cell.startswith(("=", "+", "-", "@", "\t", "\r"))


@pytest.mark.parametrize(
    ("text", "cell"),
    [("-0.62", "-0.62"), ("+1e-05", "+1e-05"), ("-1+cmd", "'-1+cmd"), ("-", "'-"), ("'-5", "''-5")],
)
def test_numbers_with_sign_are_no_formulas(text: str, cell: str) -> None:
    assert escape_csv_cell(text) == cell
    assert unescape_csv_cell(cell) == text


@given(st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.text("'=x\",\n"))))
def test_table_round_trips(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "table.csv"
    write_csv(path, ("path", "label"), rows)
    assert [(row["path"], row["label"]) for row in read_csv(path)] == rows


def test_read_csv_rejects_rows_not_matching_header(tmp_path: Path) -> None:
    for text in ("path,label\na\n", "path,label\na,b,c\n"):
        (tmp_path / "table.csv").write_text(text)
        with pytest.raises(ValueError, match="the number of cells in row 1 does not match"):
            read_csv(tmp_path / "table.csv")


def test_terminal_prints_escapes_as_text() -> None:
    stream = io.StringIO()
    screen = console._console_class()(
        file=stream, force_terminal=True, width=120, color_system="standard"
    )
    table = Table(HOSTILE)
    table.add_row(escape(HOSTILE))
    for content in (HOSTILE, table):
        screen.print(content, style="red")
    output = stream.getvalue()
    assert "\x1b[31m" in output, "colors of the console must be kept"
    assert r"\x1b]0;owned" in output
    assert not {"\x07", "\x9b", "\u202e", "\r"} & set(output)
    assert "\x1b]" not in output
    assert "\x1b[2J" not in output


def test_page_has_no_control_characters() -> None:
    page = render_page(HOSTILE, HOSTILE, [])
    assert not DANGEROUS & set(page)
    assert "default-src 'none'" in page
