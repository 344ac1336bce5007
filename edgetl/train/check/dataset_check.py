"""`edgetl check`: a folder of images to what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from edgetl.train.check.findings import SEVERITIES, Finding, Severity, find_problems
from edgetl.train.check.inspect_files import inspect_files
from edgetl.train.data.folders import find_files


@dataclass(frozen=True)
class DatasetReport:
    """A data set as it is."""

    folder: Path
    """Absolute."""
    labels: list[str]
    counts: dict[str, dict[str, int]]
    """Part (`all` where the folder has none) to class to images that can be read."""
    shorter_sides: tuple[int, float, int] | None
    """Shortest, median and longest shorter side, pixels; None without images."""
    formats: dict[str, int]
    modes: dict[str, int]
    findings: list[Finding]
    """Worst first."""

    @property
    def image_count(self) -> int:
        """That can be read."""
        return sum(sum(classes.values()) for classes in self.counts.values())

    @property
    def worst_severity(self) -> Severity | None:
        """Severity of the worst finding."""
        return self.findings[0].severity if self.findings else None

    def findings_with_severity(self, *severities: Severity) -> list[Finding]:
        """The findings of these severities."""
        return [finding for finding in self.findings if finding.severity in severities]

    def to_json(self) -> dict[str, Any]:
        """What --json prints."""
        return {
            "kind": "check",
            "folder": str(self.folder),
            "classes": self.labels,
            "images": self.image_count,
            "counts": self.counts,
            "shorter_side": None
            if self.shorter_sides is None
            else dict(zip(("least", "median", "largest"), self.shorter_sides, strict=True)),
            "formats": self.formats,
            "modes": self.modes,
            "worst": self.worst_severity,
            "findings": [
                {
                    "kind": finding.kind,
                    "severity": finding.severity,
                    "message": finding.message,
                    "groups": [
                        [self.display_path(path) for path in group] for group in finding.groups
                    ],
                }
                for finding in self.findings
            ],
        }

    def display_path(self, path: Path) -> str:
        """Relative to the folder; what is no UTF-8 is escaped."""
        relative = path.relative_to(self.folder) if path.is_relative_to(self.folder) else path
        return relative.as_posix().encode("utf-8", "backslashreplace").decode()


def check(
    data: Path, report: Callable[[int, int], None] = lambda done, total: None
) -> DatasetReport:
    """Decode every image of a folder and find what is wrong with it; nothing is changed.

    Args:
        report: called with (files done, files in all).

    Raises:
        DataError: there is no data set at all: no folder, or no class folders in it.
    """
    folder = data.expanduser().absolute()
    problems: list[str] = []
    found = find_files(folder, problems)
    examined, broken = inspect_files(found.files, report)
    rejected = sorted([*found.rejected, *broken], key=lambda entry: entry.path)
    counts: dict[str, dict[str, int]] = {}
    for image in examined:
        part = counts.setdefault(image.file.split or "all", dict.fromkeys(found.labels, 0))
        part[image.file.label] = part.get(image.file.label, 0) + 1
    shorter = sorted(min(image.width, image.height) for image in examined)
    return DatasetReport(
        folder,
        found.labels,
        counts,
        (shorter[0], median(shorter), shorter[-1]) if shorter else None,
        _value_counts(image.format for image in examined),
        _value_counts(image.mode for image in examined),
        find_problems(examined, rejected, found.labels, problems),
    )


def _value_counts(values: Any) -> dict[str, int]:
    return dict(Counter(values).most_common())


def worst_files(found: DatasetReport, most: int) -> list[tuple[Finding, Path]]:
    """Files to look at: of each finding some, of each group two, the worst findings first."""
    chosen: list[tuple[Finding, Path]] = []
    about: Sequence[Finding] = [
        finding
        for severity in SEVERITIES
        for finding in found.findings_with_severity(severity)
        if finding.groups
    ]
    share = max(2, most // max(1, len(about)))
    for finding in about:
        files = [path for group in finding.groups for path in group[:2]]
        chosen += [(finding, path) for path in files[:share]]
    return chosen[:most]
