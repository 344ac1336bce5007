"""Files that are either whole or absent: atomic writes, JSON with a schema number, hashes."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgetl.core.untrusted_text import escape_csv_cell, unescape_csv_cell

SCHEMA = 1
MAX_JSON_BYTES = 256 * 2**20
"""Larger files are not read: an hour of latencies takes a tenth of it."""
_SURROGATE = re.compile(r"\\[uU][dD][89abAB]", re.ASCII)


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


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table atomically; no cell is one that a spreadsheet would run as a formula."""
    text = io.StringIO()
    plain = csv.writer(text, lineterminator="\n")
    # A carriage return, which ends lines as well, is quoted by the writer only where it ends its own.
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    plain.writerow(header)
    for row in rows:
        cells = [escape_csv_cell(cell) for cell in row]
        (quoted if any("\r" in cell for cell in cells) else plain).writerow(cells)
    write_text(path, text.getvalue())


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read the rows of a table that `write_csv` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: no UTF-8, no table, or a row with more or fewer cells than the header.
    """
    text = read_regular_file(path, MAX_JSON_BYTES).decode()
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    except csv.Error as cause:
        raise ValueError(str(cause)) from cause
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise ValueError(f"row {number} has not as many cells as the header")
    return [{name: unescape_csv_cell(cell) for name, cell in row.items()} for row in rows]


def read_json(path: Path, error: type[Exception], what: str) -> dict[str, Any]:
    """Read a JSON object of this schema.

    Raises:
        error: the file is missing, is not JSON, or was written by a newer edgetl; `what` names it in the message.
    """
    try:
        content = parse_json(read_regular_file(path, MAX_JSON_BYTES))
    except OSError as cause:
        raise error(f"{what} cannot be read: {path} ({cause.strerror or cause}).") from cause
    except ValueError as cause:
        raise error(
            f"{what} is not valid JSON: {path} ({cause}). Restore it or make it anew."
        ) from cause
    if not isinstance(content, dict) or "schema" not in content:
        raise error(f"{what} is not one of edgetl's files: {path} has no schema number.")
    if content["schema"] != SCHEMA:
        raise error(
            f"{what} has schema {content['schema']!r}, this edgetl reads {SCHEMA}: {path}. "
            "Read it with the edgetl that wrote it, or make it anew."
        )
    return content


def parse_json(encoded: bytes | str) -> Any:
    """Parse JSON (RFC 8259) strictly.

    Raises:
        ValueError: no JSON, NaN or an infinity, half a surrogate pair, no UTF-8, or nested too deeply.
    """
    try:
        content = json.loads(encoded, parse_constant=_reject_constant)
    except RecursionError as cause:
        raise ValueError("nested too deeply") from cause
    text = encoded if isinstance(encoded, str) else encoded.decode()
    if _SURROGATE.search(text):
        # Such a text could not be printed or written.
        json.dumps(content, ensure_ascii=False).encode()
    return content


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def read_regular_file(path: Path, most_bytes: int) -> bytes:
    """Read a file of at most `most_bytes`.

    Raises:
        OSError: it cannot be read, is larger, or is a pipe, device or folder.
    """
    # O_NONBLOCK: opening a named pipe would otherwise wait for somebody who writes to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as stream:  # noqa: PTH123 (a descriptor is not a path)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        # Python allocates as many bytes as it is asked to read.
        content = stream.read(min(status.st_size, most_bytes) + 1)
        if len(content) > status.st_size:
            content += stream.read(most_bytes + 1 - len(content))
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"more than {most_bytes // 2**20} MiB", str(path))
    return content


def move_aside(path: Path) -> Path:
    """Move a directory into a new hidden one beside it and return where it lies now.

    Raises:
        OSError: it cannot be moved, for example because it is a mount point; it is then where it was.
    """
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.replaced-", dir=path.parent))
    try:
        return path.rename(aside / path.name)
    except OSError:
        aside.rmdir()
        raise


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
