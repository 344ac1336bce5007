"""Copies of what is wrong with a data set, to be looked at apart; the data set itself stays as it is."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

from edgetl.core.errors import DataError
from edgetl.train.checking.checking import DataCheck

LIST = "list.csv"


def quarantine(found: DataCheck, folder: Path) -> int:
    """Copy the files of errors and warnings into a new folder, one below it for each kind, with a list.

    Returns:
        How many files were copied.

    Raises:
        DataError: the folder is not empty, lies inside the data set, or cannot be written.
    """
    folder = folder.expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(
            f"{folder} exists and is not empty. Choose another folder for --quarantine."
        )
    if folder.resolve().is_relative_to(found.folder.resolve()):
        raise DataError(
            f"{folder} would lie inside the data folder, where a later run would take it for a class. Choose another."
        )
    copied = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LIST).open(
            "w", newline="", encoding="utf-8", errors="backslashreplace"
        ) as stream:
            table = csv.writer(stream)
            table.writerow(("severity", "kind", "group", "file", "copy"))
            for finding in found.of("error", "warning"):
                for number, group in enumerate(finding.groups, 1):
                    for path in group:
                        copy = (
                            folder
                            / re.sub(r"\W+", "-", finding.kind)
                            / found.shown(path).lstrip("/")
                        )
                        done = _copied(path, copy)
                        copied += done
                        table.writerow(
                            (
                                finding.severity,
                                finding.kind,
                                number,
                                found.shown(path),
                                copy if done else "could not be copied",
                            )
                        )
    except OSError as cause:
        raise DataError(
            f"{folder} cannot be written ({cause.strerror or cause}). Choose another folder for --quarantine."
        ) from cause
    return copied


def _copied(path: Path, copy: Path) -> bool:
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    except (FileNotFoundError, PermissionError):
        return False
    return True
