"""Finding bench results: files, folders of them, and what runs keep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from edgetl.core.artifacts.bench import BenchResult, read_bench_result
from edgetl.core.errors import BenchError
from edgetl.core.files import MAX_JSON_BYTES, parse_json, read_regular_file
from edgetl.core.paths import RunDirectory


def read_results(paths: Sequence[Path]) -> list[BenchResult]:
    """Every result at the paths: files, folders of results, or runs.

    Raises:
        BenchError: nothing there, no result in a folder, or a file that is no result.
    """
    files = dict.fromkeys(file for path in paths for file in _list_result_files(path))
    return [read_bench_result(file) for file in files]


def _is_result(path: Path) -> bool:
    """A folder may hold other kinds, such as timed candidates; what cannot be read at all is told when it is read."""
    try:
        content = parse_json(read_regular_file(path, MAX_JSON_BYTES))
    except (OSError, ValueError):
        return True
    return not isinstance(content, dict) or content.get("kind", "bench") == "bench"


def _list_result_files(path: Path) -> Iterator[Path]:
    if not path.exists():
        raise BenchError(
            f"Nothing at {path}. Give a run, a bundle, or results that `edgetl bench` wrote."
        )
    if not path.is_dir():
        yield path
        return
    folder = (
        RunDirectory(path).bench
        if RunDirectory.exists_at(path) and RunDirectory(path).bench.is_dir()
        else path
    )
    found = [file for file in sorted(folder.glob("*.json")) if _is_result(file)]
    if RunDirectory.exists_at(path) and (folder == path or not found):
        raise BenchError(
            f"No bench results in {folder}. `edgetl bench {path}` makes one; given alone, the run has a page of its own."
        )
    if not found:
        raise BenchError(
            f"No bench results in {folder}, and it is no run or bundle either. Give one of the three."
        )
    yield from found


def read_run_results(run: RunDirectory) -> list[BenchResult]:
    """The results that a run keeps, none where it was never measured.

    Raises:
        BenchError: one of them cannot be read.
    """
    return [
        read_bench_result(file) for file in sorted(run.bench.glob("*.json")) if _is_result(file)
    ]
