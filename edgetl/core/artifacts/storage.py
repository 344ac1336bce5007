"""Storage of results: output path checked before measuring, free file names, fallback folder."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from edgetl.core.config.bench import BenchConfig
from edgetl.core.errors import BenchError
from edgetl.core.paths import find_free_path


def check_output_path(output: Path | None, folder: Path) -> None:
    """Check that a result can be written, before minutes are spent on measuring.

    Args:
        output: Requested file; None chooses a new name in `folder`.
        folder: Default folder of results.

    Raises:
        BenchError: The file already exists, or its folder is not writable.
    """
    if output is not None and output.exists():
        raise BenchError(
            f"{output} already exists; results are never overwritten. Choose another {{output}}.",
            BenchConfig,
        )
    target = folder if output is None else output.parent
    existing = next(
        parent for parent in (target.absolute(), *target.absolute().parents) if parent.exists()
    )
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise BenchError(
            f"Cannot write results to {target}: {existing} is not writable. "
            "Choose another {output}.",
            BenchConfig,
        )


def store_result(
    write: Callable[[Path], None], output: Path | None, folder: Path, created: datetime
) -> tuple[Path | None, tuple[str, ...]]:
    """Write a result to `output` or a new file in `folder`, or else to the temporary folder.

    Args:
        write: Function that writes to a new file, or raises BenchError if it cannot.
        output: Requested file; None chooses a new name in `folder`.
        folder: Default folder of results.
        created: Start of the measurement.

    Returns:
        The path, None if the result could not be written anywhere, and messages for the user,
        empty if the result was written as requested.
    """
    host = platform.node() or "device"
    path = output or find_free_path(folder, f"{created:%Y%m%dT%H%M%SZ}-{host}", ".json")
    try:
        write(path)
    except BenchError as error:
        fallback = find_free_path(Path(tempfile.gettempdir()), f"edgetl-{path.stem}", ".json")
        try:
            write(fallback)
        except BenchError:
            return None, (
                f"{error} Cannot write to {fallback.parent} either: the result was NOT saved.",
            )
        return fallback, (f"{error} The result was saved to {fallback} instead.",)
    return path, ()
