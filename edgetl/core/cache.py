"""Where results are kept that a later run can use again: activations, hashes of images, and which arithmetic was measured fastest here."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgetl import __version__
from edgetl.core.errors import EdgetlError
from edgetl.core.files import read_json, write_json

_DAY_S = 86400.0
_DIGEST_KEY = "sha256"


def get_cache_folder() -> Path:
    """$EDGETL_CACHE, else edgetl/ in $XDG_CACHE_HOME (XDG Base Directory Specification), else ~/.cache/edgetl."""
    if own := os.environ.get("EDGETL_CACHE"):
        return Path(own).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "edgetl"


def write_cache_entry(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object with the version of edgetl and a hash of both.

    Raises:
        OSError: it cannot be written.
    """
    write_json(
        path, {**content, "edgetl": __version__, _DIGEST_KEY: _compute_digest(content, __version__)}
    )


def read_cache_entry(path: Path) -> dict[str, Any] | None:
    """Read what `write_entry` wrote; None where there is nothing, or it is damaged, edited or of another version.

    A cache is a convenience: what is in doubt is computed again, and never reported.
    """
    try:
        content = read_json(path, EdgetlError, "The cache entry")
    except EdgetlError:
        return None
    version, digest = content.pop("edgetl", None), content.pop(_DIGEST_KEY, None)
    content.pop("schema")
    return (
        content
        if version == __version__ and digest == _compute_digest(content, __version__)
        else None
    )


def _compute_digest(content: dict[str, Any], version: str) -> str:
    # As it will be read: keys that are numbers become text, and are sorted as such.
    plain = json.loads(json.dumps(content))
    return hashlib.sha256(json.dumps([version, plain], sort_keys=True).encode()).hexdigest()


def prune_cache(folder: Path, budget_bytes: int, keep: Collection[Path]) -> None:
    """Remove the entries of `folder` that were used longest ago until the rest fits; those in `keep` stay.

    Another process may do the same at the same time: what is gone already is no error. What processes left unfinished when they were
    killed goes after a day.
    """
    with suppress(OSError):
        entries = [
            (entry.stat().st_mtime, entry)
            for entry in folder.iterdir()
            if entry.is_dir() and entry not in keep
        ]
        left = sum(_sum_file_sizes(entry) for entry in folder.iterdir() if entry.is_dir())
        for used, entry in sorted(entries):
            unfinished = entry.name.startswith(".")
            if (unfinished and time.time() - used > _DAY_S) or (
                not unfinished and left > budget_bytes
            ):
                left -= _sum_file_sizes(entry)
                shutil.rmtree(entry, ignore_errors=True)


def _sum_file_sizes(folder: Path) -> int:
    with suppress(OSError):
        return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    return 0
