"""Where results are kept that a later run can use again: activations, hashes of images, and which arithmetic was measured fastest here."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

_DAY_S = 86400.0


def cache_folder() -> Path:
    """$EDGETL_CACHE, else edgetl/ in $XDG_CACHE_HOME (XDG Base Directory Specification), else ~/.cache/edgetl."""
    if own := os.environ.get("EDGETL_CACHE"):
        return Path(own).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "edgetl"


def prune(folder: Path, budget_bytes: int, keep: Collection[Path]) -> None:
    """Remove the entries of `folder` that were used longest ago until the rest fits; those in `keep` stay.

    Another process may do the same at the same time: what is gone already is no error. What processes left unfinished when they were
    killed goes after a day.
    """
    with suppress(OSError):
        entries = [(entry.stat().st_mtime, entry) for entry in folder.iterdir() if entry.is_dir() and entry not in keep]
        left = sum(_size(entry) for entry in folder.iterdir() if entry.is_dir())
        for used, entry in sorted(entries):
            unfinished = entry.name.startswith(".")
            if (unfinished and time.time() - used > _DAY_S) or (not unfinished and left > budget_bytes):
                left -= _size(entry)
                shutil.rmtree(entry, ignore_errors=True)


def _size(folder: Path) -> int:
    with suppress(OSError):
        return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    return 0
