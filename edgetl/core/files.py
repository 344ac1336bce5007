"""File input and output: atomic writes, JSON with a schema number, CSV, hashes."""

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO, TypeVar

from edgetl.core.typed_json import FieldError, JsonObject, parse_as
from edgetl.core.untrusted_text import escape_csv_cell, unescape_csv_cell

T = TypeVar("T")
SCHEMA = 1
MAX_JSON_BYTES = 256 * 2**20
"""Size limit of files to read, ten times the size of a result with an hour of latencies."""
_SURROGATE = re.compile(r"\\[uU][dD][89abAB]", re.ASCII)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces `path` if the block succeeds.

    The data is flushed to disk before the rename, so after a power failure the file is either the
    old or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        # mkstemp creates files with mode 0600; shared run directories need the mode of open().
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
    """Write a JSON object atomically, with the schema number first."""
    write_text(path, json.dumps({"schema": SCHEMA, **content}, indent=2, ensure_ascii=False) + "\n")


class CsvWriter:
    """Writer of a table, with cells escaped that a spreadsheet would run as formulas."""

    def __init__(self, stream: TextIO, header: Sequence[str]) -> None:
        self._plain_writer = csv.writer(stream, lineterminator="\n")
        # The csv module quotes a carriage return only if it is part of the line terminator.
        self._quoting_writer = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL)
        self._plain_writer.writerow(header)

    def write_row(self, row: Sequence[str]) -> None:
        """Write a row."""
        cells = [escape_csv_cell(cell) for cell in row]
        has_carriage_return = any("\r" in cell for cell in cells)
        writer = self._quoting_writer if has_carriage_return else self._plain_writer
        writer.writerow(cells)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table atomically, see `CsvWriter`."""
    text = io.StringIO()
    writer = CsvWriter(text, header)
    for row in rows:
        writer.write_row(row)
    write_text(path, text.getvalue())


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read the rows of a table that `write_csv` wrote.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is not UTF-8 or CSV, or the cells of a row do not match the header.
    """
    text = read_regular_file(path, MAX_JSON_BYTES).decode()
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    except csv.Error as cause:
        raise ValueError(str(cause)) from cause
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise ValueError(f"the number of cells in row {number} does not match the header")
    return [{name: unescape_csv_cell(cell) for name, cell in row.items()} for row in rows]


def read_json(path: Path, error: type[Exception], what: str) -> JsonObject:
    """Read a JSON object of the current schema.

    Args:
        path: File to read.
        error: Class of the error to raise.
        what: Name of the file in messages.

    Raises:
        error: The file cannot be read, is not a JSON object, or has another schema number.
    """
    try:
        content = parse_json(read_regular_file(path, MAX_JSON_BYTES))
    except OSError as cause:
        raise error(f"{what} cannot be read: {path} ({cause.strerror or cause}).") from cause
    except ValueError as cause:
        raise error(
            f"{what} is not valid JSON: {path} ({cause}). Restore or recreate it."
        ) from cause
    if not isinstance(content, dict) or "schema" not in content:
        raise error(f"{what} was not written by edgetl: {path} has no schema number.")
    if content["schema"] != SCHEMA:
        raise error(
            f"{what} has schema {content['schema']!r}, but this edgetl reads {SCHEMA}: {path}. "
            "Read it with the edgetl that wrote it, or recreate it."
        )
    return content


@dataclass(frozen=True)
class ReadPolicy:
    """Treatment of broken files of one kind, such as the JSON files of a run."""

    error: type[Exception]
    """Class of the error to raise."""
    advice: str
    """Sentence that tells how to restore the file."""
    extra: Literal["refuse", "ignore"] = "refuse"
    """Whether unknown fields are an error."""


def read_json_as(kind: type[T], path: Path, what: str, policy: ReadPolicy) -> T:
    """Read a JSON file of the current schema as a dataclass.

    Args:
        kind: Dataclass of the file's content, without the schema number.
        path: File to read.
        what: Name of the file in messages, such as "The run's metrics".
        policy: Treatment of broken files.

    Raises:
        policy.error: The file cannot be read, has another schema number, or a field is missing,
            unknown or of the wrong type.
    """
    content = read_json(path, policy.error, what)
    del content["schema"]
    try:
        return parse_as(kind, content, "it", extra=policy.extra)
    except FieldError as cause:
        problem = str(cause).removeprefix("it.").removeprefix("it: ")
        raise policy.error(f"{path} is broken: {problem}. {policy.advice}") from cause


def read_json_of_kind(path: Path, kind: str) -> JsonObject | None:
    """Return the content of a file of the current schema with this `kind`, None if it is not one.

    Fields are not checked.
    """
    try:
        content = parse_json(read_regular_file(path, MAX_JSON_BYTES))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        return None
    return content if content.get("kind") == kind else None


def parse_json(encoded: bytes | str) -> Any:
    """Parse JSON (RFC 8259) strictly.

    Raises:
        ValueError: The input is not JSON or UTF-8, is nested too deeply, or contains NaN, infinity
            or an unpaired surrogate.
    """
    try:
        content = json.loads(encoded, parse_constant=_reject_constant)
    except RecursionError as cause:
        raise ValueError("nested too deeply") from cause
    text = encoded if isinstance(encoded, str) else encoded.decode()
    if _SURROGATE.search(text):
        # An unpaired surrogate cannot be encoded, so it could not be printed or written.
        json.dumps(content, ensure_ascii=False).encode()
    return content


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def read_regular_file(path: Path, max_bytes: int) -> bytes:
    """Read a file of at most `max_bytes`.

    Raises:
        OSError: The file cannot be read, is larger, or is a pipe, device or folder.
    """
    # Without O_NONBLOCK, opening a named pipe would block until another process writes to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as stream:  # noqa: PTH123 (a descriptor is not a path)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        # read(n) allocates n bytes, so n should not be much larger than the file.
        content = stream.read(min(status.st_size, max_bytes) + 1)
        if len(content) > status.st_size:
            content += stream.read(max_bytes + 1 - len(content))
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"more than {max_bytes // 2**20} MiB", str(path))
    return content


def move_aside(path: Path) -> Path:
    """Move a directory into a new hidden one beside it and return its new path.

    Raises:
        OSError: The directory cannot be moved, for example because it is a mount point. It then
            remains unchanged.
    """
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.replaced-", dir=path.parent))
    try:
        return path.rename(aside / path.name)
    except OSError:
        aside.rmdir()
        raise


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
