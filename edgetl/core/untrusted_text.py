"""Escaping of untrusted text for terminals, HTML, CSV and JSON.

Labels, file names, model names and the output of other hosts may contain terminal escape sequences
(ESC, OSC), characters that change the text direction, or formulas that a spreadsheet would run.
"""

from __future__ import annotations

import re

_CONTROL_CHARACTERS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)
_NOT_ESCAPED_BY_JSON = re.compile(r"[\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_FORMULA_START = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?", re.ASCII)


def escape_control_characters(text: str) -> str:
    r"""Replace control and direction characters by escapes such as `\x1b`.

    Tabs and line feeds are kept.
    """
    return _CONTROL_CHARACTERS.sub(_escape_character, text)


def escape_json_controls(text: str) -> str:
    """Escape the control characters that JSON allows unescaped, without changing the content."""
    return _NOT_ESCAPED_BY_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def escape_csv_cell(text: str) -> str:
    """Prefix a cell that starts like a formula with an apostrophe, which makes it text.

    Numbers with a sign are kept. Source: OWASP, "CSV Injection". `unescape_csv_cell` is the inverse.
    """
    is_formula = _FORMULA_START.match(text) and not _NUMBER.fullmatch(text)
    return f"'{text}" if is_formula else text


def unescape_csv_cell(cell: str) -> str:
    """Return the text that `escape_csv_cell` escaped."""
    return cell[1:] if cell.startswith("'") and _FORMULA_START.match(cell[1:]) else cell


def _escape_character(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
