"""Bench result files: reading, writing, and listing those of folders and runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from edgetl.core.artifacts.bench import BenchResult
from edgetl.core.config.bench import BenchConfig
from edgetl.core.errors import BenchError, ConfigError
from edgetl.core.files import MAX_JSON_BYTES, parse_json, read_json, read_regular_file
from edgetl.core.paths import RunDirectory, StrPath
from edgetl.core.typed_json import FieldError, JsonObject


def read_result(path: StrPath) -> BenchResult:
    """Read a result file of `edgetl bench`; its statistics are computed from the raw latencies.

    Raises:
        BenchError: The file is missing, is not a bench result, or is broken.
    """
    path = Path(path)
    content = read_json(path, BenchError, "The bench result")
    if content.get("kind") != "bench":
        raise BenchError(
            f"{path} is not a bench result: its kind is {content.get('kind')!r}. "
            "Give a result of `edgetl bench` for a run, bundle or ONNX file."
        )
    try:
        return replace(BenchResult.from_json(content), path=path)
    except (FieldError, ConfigError) as cause:
        raise BenchError(f"Bench result {path} is broken: {cause}. Measure again.") from cause


class JsonSerializable(Protocol):
    """Object that can be written to a result file."""

    def to_json(self) -> JsonObject:
        """Return the content of the file."""


def write_result(result: JsonSerializable, path: Path) -> None:
    """Write a result to a new file.

    Raises:
        BenchError: The file exists or cannot be written; no partial file remains.
    """
    text = json.dumps(result.to_json(), ensure_ascii=False, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as stream:
            try:
                stream.write(text)
                stream.flush()
            except BaseException:
                path.unlink(missing_ok=True)
                raise
    except FileExistsError as cause:
        raise BenchError(
            f"{path} already exists; results are never overwritten. Choose another {{output}}.",
            BenchConfig,
        ) from cause
    except OSError as cause:
        raise BenchError(
            f"Cannot write the result to {path} ({cause.strerror or cause}). Choose another {{output}}.",
            BenchConfig,
        ) from cause


def read_results(paths: Sequence[Path]) -> list[BenchResult]:
    """Read every result at the paths: files, folders of results, or runs.

    Raises:
        BenchError: A path does not exist, a folder has no results, or a file is not a result.
    """
    files = dict.fromkeys(file for path in paths for file in _list_result_files(path))
    return [read_result(file) for file in files]


def _is_result(path: Path) -> bool:
    """Return whether a file is a bench result and not another kind, such as timed candidates."""
    try:
        content = parse_json(read_regular_file(path, MAX_JSON_BYTES))
    except (OSError, ValueError):
        # `read_result` reports unreadable files.
        return True
    return not isinstance(content, dict) or content.get("kind", "bench") == "bench"


def _list_result_files(path: Path) -> Iterator[Path]:
    if not path.exists():
        raise BenchError(f"{path} not found. Give a run, a bundle, or results of `edgetl bench`.")
    if not path.is_dir():
        yield path
        return
    folder = path
    if RunDirectory.exists_at(path) and RunDirectory(path).bench.is_dir():
        folder = RunDirectory(path).bench
    files = [file for file in sorted(folder.glob("*.json")) if _is_result(file)]
    if RunDirectory.exists_at(path) and (folder == path or not files):
        raise BenchError(
            f"No bench results in {folder}. Run `edgetl bench {path}`, "
            "or give the run alone to get its page."
        )
    if not files:
        raise BenchError(
            f"No bench results in {folder}, and it is neither a run nor a bundle. "
            "Give one of the three."
        )
    yield from files


def read_run_results(run: RunDirectory) -> list[BenchResult]:
    """Read the results of a run; an empty list if it was never measured.

    Raises:
        BenchError: A result cannot be read.
    """
    return [read_result(file) for file in sorted(run.bench.glob("*.json")) if _is_result(file)]
