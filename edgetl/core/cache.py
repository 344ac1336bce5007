"""Cache of results that later runs can reuse: features, image hashes, timing measurements."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from edgetl import __version__
from edgetl.core.errors import EdgetlError
from edgetl.core.files import read_json, write_json
from edgetl.core.typed_json import JsonObject

_DAY_S = 86400.0
_DIGEST_KEY = "sha256"


def get_cache_folder() -> Path:
    """Return $EDGETL_CACHE, or else edgetl/ in $XDG_CACHE_HOME or ~/.cache.

    Source: XDG Base Directory Specification.
    """
    if folder := os.environ.get("EDGETL_CACHE"):
        return Path(folder).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "edgetl"


def write_cache_entry(path: Path, content: Mapping[str, object]) -> None:
    """Write a JSON object with the version of edgetl and a hash of both.

    Raises:
        OSError: The file cannot be written.
    """
    write_json(
        path, {**content, "edgetl": __version__, _DIGEST_KEY: _compute_digest(content, __version__)}
    )


def read_cache_entry(path: Path) -> JsonObject | None:
    """Read an entry; None if it is missing, damaged, edited or of another version.

    Invalid entries are not reported, because their content can be recomputed.
    """
    try:
        content = read_json(path, EdgetlError, "The cache entry")
    except EdgetlError:
        return None
    version, digest = content.pop("edgetl", None), content.pop(_DIGEST_KEY, None)
    content.pop("schema")
    if version != __version__ or digest != _compute_digest(content, __version__):
        return None
    return content


def _compute_digest(content: Mapping[str, object], version: object) -> str:
    # JSON converts numeric keys to strings, which sort differently.
    normalized = json.loads(json.dumps(content))
    return hashlib.sha256(json.dumps([version, normalized], sort_keys=True).encode()).hexdigest()


def prune_cache(folder: Path, budget_bytes: int, keep: Collection[Path]) -> None:
    """Remove the least recently used entries of a folder, except `keep`, until the rest fits.

    Several processes may prune at the same time, so missing entries are ignored. Unfinished entries
    of killed processes are removed after a day.
    """
    with suppress(OSError):
        entries = [
            (entry.stat().st_mtime, entry)
            for entry in folder.iterdir()
            if entry.is_dir() and entry not in keep
        ]
        total_bytes = sum(_sum_file_sizes(entry) for entry in folder.iterdir() if entry.is_dir())
        for last_used, entry in sorted(entries):
            is_expired = total_bytes > budget_bytes
            if entry.name.startswith("."):
                is_expired = time.time() - last_used > _DAY_S
            if is_expired:
                total_bytes -= _sum_file_sizes(entry)
                shutil.rmtree(entry, ignore_errors=True)


def _sum_file_sizes(folder: Path) -> int:
    with suppress(OSError):
        return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    return 0
