"""Data set check: inspect a folder of images and report problems (`edgetl check`)."""

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
    """Statistics and problems of a data set."""

    folder: Path
    """Absolute path of the data folder."""
    labels: list[str]
    counts: dict[str, dict[str, int]]
    """Readable images by split (`all` without predefined splits) and class."""
    shorter_sides: tuple[int, float, int] | None
    """Minimum, median and maximum of the shorter side in pixels; None without images."""
    formats: dict[str, int]
    modes: dict[str, int]
    findings: list[Finding]
    """Findings, worst first."""

    @property
    def image_count(self) -> int:
        """Number of readable images."""
        return sum(sum(classes.values()) for classes in self.counts.values())

    @property
    def worst_severity(self) -> Severity | None:
        """Severity of the worst finding; None without findings."""
        return self.findings[0].severity if self.findings else None

    def findings_with_severity(self, *severities: Severity) -> list[Finding]:
        """Return the findings with one of these severities."""
        return [finding for finding in self.findings if finding.severity in severities]

    def to_json(self) -> dict[str, Any]:
        """Return the report as printed by --json."""
        shorter_side = None
        if self.shorter_sides is not None:
            shorter_side = dict(
                zip(("least", "median", "largest"), self.shorter_sides, strict=True)
            )
        return {
            "kind": "check",
            "folder": str(self.folder),
            "classes": self.labels,
            "images": self.image_count,
            "counts": self.counts,
            "shorter_side": shorter_side,
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
        """Return a path relative to the folder, with invalid UTF-8 escaped."""
        relative = path.relative_to(self.folder) if path.is_relative_to(self.folder) else path
        return relative.as_posix().encode("utf-8", "backslashreplace").decode()


def check(
    data: Path, report: Callable[[int, int], None] = lambda done, total: None
) -> DatasetReport:
    """Decode every image of a folder and report problems; nothing is changed.

    Args:
        data: the data folder.
        report: called with (files done, files in total).

    Raises:
        DataError: if the folder does not exist or has no class folders.
    """
    folder = data.expanduser().absolute()
    problems: list[str] = []
    dataset_files = find_files(folder, problems)
    labels = dataset_files.labels
    images, unreadable = inspect_files(dataset_files.files, report)
    rejected = sorted([*dataset_files.rejected, *unreadable], key=lambda entry: entry.path)
    counts: dict[str, dict[str, int]] = {}
    for image in images:
        split_counts = counts.setdefault(image.file.split or "all", dict.fromkeys(labels, 0))
        split_counts[image.file.label] = split_counts.get(image.file.label, 0) + 1
    sides = sorted(min(image.width, image.height) for image in images)
    return DatasetReport(
        folder,
        labels,
        counts,
        (sides[0], median(sides), sides[-1]) if sides else None,
        _value_counts(image.format for image in images),
        _value_counts(image.mode for image in images),
        find_problems(images, rejected, labels, problems),
    )


def _value_counts(values: Any) -> dict[str, int]:
    return dict(Counter(values).most_common())


def worst_files(report: DatasetReport, max_files: int) -> list[tuple[Finding, Path]]:
    """Return example files of the findings, worst first, with at most two of each group."""
    examples: list[tuple[Finding, Path]] = []
    findings: Sequence[Finding] = [
        finding
        for severity in SEVERITIES
        for finding in report.findings_with_severity(severity)
        if finding.groups
    ]
    files_per_finding = max(2, max_files // max(1, len(findings)))
    for finding in findings:
        files = [path for group in finding.groups for path in group[:2]]
        examples += [(finding, path) for path in files[:files_per_finding]]
    return examples[:max_files]
