"""Where results are kept that a later run can use again; removing the folder loses nothing but time."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def cache_folder() -> Path:
    """$EDGETL_CACHE, else edgetl/ in $XDG_CACHE_HOME (XDG Base Directory Specification), else ~/.cache/edgetl."""
    if own := os.environ.get("EDGETL_CACHE"):
        return Path(own).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "edgetl"


def prune(folder: Path, budget_bytes: int, keep: Path) -> None:
    """Remove the entries of `folder` that were used longest ago until the rest fits; `keep` stays."""
    entries = [entry for entry in folder.iterdir() if entry.is_dir() and entry != keep and not entry.name.startswith(".")]
    entries.sort(key=lambda entry: entry.stat().st_mtime)
    left = sum(_size(entry) for entry in (*entries, keep))
    for entry in entries:
        if left <= budget_bytes:
            return
        left -= _size(entry)
        shutil.rmtree(entry, ignore_errors=True)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
