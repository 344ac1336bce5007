"""Make text from outside harmless where it leaves: terminal, HTML, CSV and JSON.

Labels, file names, model names and the words of other hosts may hold escape sequences that rewrite a terminal
(ESC, OSC), characters that turn the direction of what follows, or formulas that a spreadsheet runs.
"""

from __future__ import annotations

import re

_CONTROL_CHARACTERS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)
_NOT_ESCAPED_BY_JSON = re.compile(r"[\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_FORMULA_START = re.compile(r"'*[=+\-@\t\r]")


def escape_control_characters(text: str) -> str:
    r"""Return text in which control and direction characters stand as escapes such as `\x1b`.

    Tabs and line feeds stay.
    """
    return _CONTROL_CHARACTERS.sub(_escape_character, text)


def escape_json_controls(text: str) -> str:
    """Return a JSON text in which the control characters that JSON leaves alone are escaped; it means the same."""
    return _NOT_ESCAPED_BY_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def escape_csv_cell(text: str) -> str:
    """Return a cell that spreadsheets take for text: what begins like a formula gets a leading apostrophe.

    Source: OWASP, "CSV Injection". `csv_text` is the inverse.
    """
    return f"'{text}" if _FORMULA_START.match(text) else text


def unescape_csv_cell(cell: str) -> str:
    """Return what `csv_cell` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA_START.match(cell[1:]) else cell


def _escape_character(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
