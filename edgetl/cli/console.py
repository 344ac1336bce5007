"""The terminal: tables and notes on standard output, progress and errors on standard error."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from rich.console import Console

PLAIN_WIDTH = 200
"""Columns where output goes to a file or a pipe: paths and messages are not folded for a screen that is not there."""


def _width(stream: TextIO) -> int | None:
    return None if stream.isatty() or "COLUMNS" in os.environ else PLAIN_WIDTH


out = Console(highlight=False, width=_width(sys.stdout))
"""Results."""
err = Console(stderr=True, highlight=False, width=_width(sys.stderr))
"""Progress, warnings and errors: never mixed into --json."""
