"""What a report is about: bench results, one run, one bundle, or one experiment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from edgetl.core.errors import ConfigError
from edgetl.core.layout import BundleDirectory, ExperimentDirectory, RunDirectory

Subject = Literal["bench", "run", "bundle", "experiment"]


_ALONE: dict[Subject, str] = {"bundle": "a bundle", "experiment": "an experiment"}


def subject_of(path: Path) -> Subject:
    """What lies at one path; whatever is no run or bundle is looked into for bench results."""
    if BundleDirectory.is_one(path):
        return "bundle"
    if RunDirectory.is_one(path):
        return "run"
    if ExperimentDirectory.is_one(path):
        return "experiment"
    return "bench"


def common_subject(paths: Sequence[Path]) -> Subject:
    """What one page can show of all paths: a run, a bundle or an experiment where it is alone, else bench results, which runs keep too.

    Raises:
        ConfigError: a bundle or an experiment is not alone.
    """
    subjects = {path: subject_of(path) for path in paths}
    if len(subjects) == 1:
        return next(iter(subjects.values()))
    for path, subject in subjects.items():
        if subject in _ALONE:
            raise ConfigError(
                f"{path} is {_ALONE[subject]}, which has a page of its own: give it alone, `edgetl report {path}`."
            )
    return "bench"
