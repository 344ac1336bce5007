"""Result files in, a page out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from edgetl.core.errors import BenchError, ConfigError
from edgetl.core.files import write_text
from edgetl.core.layout import RunDirectory
from edgetl.core.results import BenchResult, read_result
from edgetl.report.page import is_own_page


def read_results(paths: Sequence[Path]) -> list[BenchResult]:
    """Every result at the paths: files, folders of results, or runs.

    Raises:
        BenchError: nothing there, no result in a folder, or a file that is no result.
    """
    files = dict.fromkeys(file for path in paths for file in _files(path))
    return [read_result(file) for file in files]


def write_page(path: Path, page: Callable[[], str], force: bool = False) -> None:
    """Write a page; `page` makes it once it is clear that it may be written.

    Raises:
        ConfigError: `path` is a file that edgetl did not write and `force` is not given, or it cannot be written.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder. Give a file: --output {path / 'report.html'}.")
    if path.exists() and not force and not is_own_page(path):
        raise ConfigError(f"{path} exists and was not written by edgetl. Choose another --output, or overwrite it with --force.")
    text = page()
    try:
        write_text(path, text)
    except OSError as cause:
        raise ConfigError(f"The page cannot be written to {path} ({cause.strerror or cause}). Choose another --output.") from cause


def _is_result(path: Path) -> bool:
    """A folder may hold other kinds, such as timed candidates; what cannot be read at all is told when it is read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    return not isinstance(content, dict) or content.get("kind", "bench") == "bench"


def _files(path: Path) -> Iterator[Path]:
    if not path.exists():
        raise BenchError(f"Nothing at {path}. Give a result that `edgetl bench` wrote, or a folder of them.")
    if not path.is_dir():
        yield path
        return
    folder = RunDirectory(path).bench if RunDirectory.is_one(path) and RunDirectory(path).bench.is_dir() else path
    found = [file for file in sorted(folder.glob("*.json")) if _is_result(file)]
    if RunDirectory.is_one(folder) or not found:
        raise BenchError(f"No bench results in {folder}. `edgetl bench {path}` makes one.")
    yield from found
