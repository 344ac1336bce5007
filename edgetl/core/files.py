"""Files that are either whole or absent: atomic writes, JSON with a schema number, hashes."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SCHEMA = 1


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it replaces `path` when the block ends without an error.

    The bytes are flushed to the disk before the rename, so after a power cut the file is the old or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        # mkstemp creates 0600; a shared run directory wants what open() would have given.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, led by its schema number."""
    write_text(path, json.dumps({"schema": SCHEMA, **content}, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, error: type[Exception], what: str) -> dict[str, Any]:
    """Read a JSON object of this schema.

    Raises:
        error: the file is missing, is not JSON, or was written by a newer edgetl; `what` names it in the message.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as cause:
        raise error(f"{what} cannot be read: {path} ({cause.strerror or cause}).") from cause
    except ValueError as cause:
        raise error(f"{what} is not valid JSON: {path} ({cause}). Restore it or make it anew.") from cause
    if not isinstance(content, dict) or "schema" not in content:
        raise error(f"{what} is not one of edgetl's files: {path} has no schema number.")
    if content["schema"] != SCHEMA:
        raise error(
            f"{what} has schema {content['schema']!r}, this edgetl reads {SCHEMA}: {path}. "
            "Read it with the edgetl that wrote it, or make it anew."
        )
    return content


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
