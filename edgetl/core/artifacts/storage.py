"""Where results are kept: a place checked before minutes of measuring, a name that nothing has yet, and never lost for want of space."""

from __future__ import annotations

import os
import platform
import re
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from edgetl.core.errors import BenchError


def check_output_path(output: Path | None, folder: Path) -> None:
    """Minutes of measuring must not end at a folder that cannot be written.

    Args:
        output: the file asked for; None takes a new name in `folder`.
        folder: where results go by default.

    Raises:
        BenchError: the file is there already, or its folder cannot be written.
    """
    if output is not None and output.exists():
        raise BenchError(
            f"{output} exists already and results are never overwritten. Choose another --output."
        )
    place = folder if output is None else output.parent
    nearest = next(
        parent for parent in (place.absolute(), *place.absolute().parents) if parent.exists()
    )
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise BenchError(
            f"Results cannot be written to {place}: no right to write in {nearest}. Choose another place with --output."
        )


def store_result(
    write: Callable[[Path], None], output: Path | None, folder: Path, created: datetime
) -> tuple[Path | None, tuple[str, ...]]:
    """Write under the name asked for, or under the first free one in `folder`; where that fails, in the temporary folder.

    Args:
        write: writes to a file that does not exist yet, and raises BenchError where it cannot.
        output: the file asked for; None takes a new name in `folder`.
        folder: where results go by default.
        created: when measuring began.

    Returns:
        The path, and in words where it lies if not where it was asked for; the path is None where there is space nowhere.
    """
    host = re.sub(r"[^\w.-]+", "-", platform.node()).strip("-.") or "device"
    path = output or _find_free_path(folder, f"{created:%Y%m%dT%H%M%SZ}-{host}")
    try:
        write(path)
    except BenchError as error:
        spare = _find_free_path(Path(tempfile.gettempdir()), f"edgetl-{path.stem}")
        try:
            write(spare)
        except BenchError:
            return None, (
                f"{error} Nor is there space in {spare.parent}: the result was NOT kept.",
            )
        return spare, (f"{error} It was kept in {spare} instead.",)
    return path, ()


def _find_free_path(folder: Path, stem: str) -> Path:
    path, number = folder / f"{stem}.json", 1
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}.json"
    return path
