"""Data set check: inspect a folder of images and report problems (`edgetl check`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from edgetl.core.paths import StrPath
from edgetl.core.progress import ProgressCallback, log_progress
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
    """Readable images by split (`all` in a folder with neither val/ nor test/) and class."""
    shorter_sides: tuple[int, float, int] | None
    """Minimum, median and maximum of the shorter side in pixels; None without images."""
    formats: dict[str, int]
    modes: dict[str, int]
    findings: list[Finding]
    """Findings, worst first."""
    quarantined_files: int | None = None
    """Number of files copied to the quarantine folder; None without one."""

    def __repr__(self) -> str:
        return (
            f"DatasetReport({str(self.folder)!r}, {len(self.labels)} classes, "
            f"{self.image_count} images, worst_severity={self.worst_severity!r})"
        )

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
    data: StrPath,
    progress: ProgressCallback | None = None,
    sheet: StrPath | None = None,
    quarantine: StrPath | None = None,
) -> DatasetReport:
    """Decode every image of a folder and report problems; nothing in it is changed.

    Args:
        data: folder with train/, val/ and test/ folders of classes, or with one folder for each
            class.
        progress: called after each file.
        sheet: PNG file to write: a contact sheet of the worst files.
        quarantine: folder to copy the files with errors or warnings to, with a list.csv of reasons;
            it must not exist or be empty.

    Raises:
        DataError: the data folder does not exist or has no class folders, or the quarantine folder
            cannot be used.
    """
    report = _inspect(Path(data), progress or log_progress)
    # Imported here because they load matplotlib.
    if sheet is not None:
        from edgetl.train.check.review import draw_worst_files

        draw_worst_files(report, Path(sheet))
    if quarantine is not None:
        from edgetl.train.check.review import copy_problem_files

        report = replace(report, quarantined_files=copy_problem_files(report, Path(quarantine)))
    return report


def _inspect(data: Path, progress: ProgressCallback) -> DatasetReport:
    folder = data.expanduser().absolute()
    problems: list[str] = []
    dataset_files = find_files(folder, problems)
    labels = dataset_files.labels
    images, unreadable = inspect_files(dataset_files.files, progress)
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
        find_problems(images, rejected, dataset_files, problems),
    )


def _value_counts(values: Iterable[str]) -> dict[str, int]:
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
