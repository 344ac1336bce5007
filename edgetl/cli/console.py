"""The terminal: tables and notes on standard output, progress and errors on standard error."""

from __future__ import annotations

from rich.console import Console

out = Console(highlight=False)
"""Results."""
err = Console(stderr=True, highlight=False)
"""Progress, warnings and errors: never mixed into --json."""
