"""What a report is about: bench results, one run, or one bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from edgetl.core.errors import ConfigError
from edgetl.core.layout import BundleDirectory, RunDirectory

Subject = Literal["bench", "run", "bundle"]


def subject_of(path: Path) -> Subject:
    """What lies at one path; whatever is no run or bundle is looked into for bench results."""
    if BundleDirectory.is_one(path):
        return "bundle"
    if RunDirectory.is_one(path):
        return "run"
    return "bench"


def common_subject(paths: Sequence[Path]) -> Subject:
    """What one page can show of all paths: a run or a bundle where it is alone, else bench results, which runs keep too.

    Raises:
        ConfigError: a bundle is not alone.
    """
    subjects = {path: subject_of(path) for path in paths}
    if len(subjects) == 1:
        return next(iter(subjects.values()))
    bundle = next((path for path, subject in subjects.items() if subject == "bundle"), None)
    if bundle is not None:
        raise ConfigError(f"{bundle} is a bundle, which has a page of its own: give it alone, `edgetl report {bundle}`.")
    return "bench"
