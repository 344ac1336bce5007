"""Process of one step: `worker MODULE:FUNCTION SETTINGS RECORD LIMIT_S`."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from tools.checks.gpu_check.record import Record
from tools.checks.gpu_check.settings import Settings


def main() -> None:
    """Call the step's function with the settings and a new record."""
    module, _, function = sys.argv[1].partition(":")
    record = Record(Path(sys.argv[3]), limit_s=float(sys.argv[4]))
    getattr(import_module(module), function)(Settings.read(Path(sys.argv[2])), record)


if __name__ == "__main__":
    main()
