"""Findings of the data set check: problem, severity and next step."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgetl.train.check.inspect_files import InspectedFile
from edgetl.train.check.near_duplicates import group_near_duplicates
from edgetl.train.data.folders import DatasetFiles, LabeledFile, RejectedFile
from edgetl.train.data.splits import LEAKS, group_leaks

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""Severities, worst first.

An error makes results wrong or training impossible, a warning costs accuracy or time, a note is for
information.
"""
IMBALANCE_RATIO = 10
"""Ratio of images between the largest and the smallest class from which on it is reported."""
_SMALL_SIDE = 32


@dataclass(frozen=True)
class Finding:
    """Problem of a data set."""

    kind: str
    severity: Severity
    message: str
    """Description with the next step."""
    groups: tuple[tuple[Path, ...], ...] = ()
    """Affected files, in groups that belong together."""

    @property
    def files(self) -> list[Path]:
        """All affected files without duplicates."""
        return list(dict.fromkeys(path for group in self.groups for path in group))


def find_problems(
    images: Sequence[InspectedFile],
    rejected: Sequence[RejectedFile],
    dataset_files: DatasetFiles,
    problems: Sequence[str],
) -> list[Finding]:
    """Return all findings, worst first.

    Args:
        images: the readable images.
        rejected: the other files.
        dataset_files: classes and folders of the data set.
        problems: messages about the folders.
    """
    findings = [Finding("folders", "error", problem) for problem in problems]
    findings += [Finding("folders", "warning", warning) for warning in dataset_files.warnings]
    findings += _find_unreadable(rejected)
    findings += _find_empty_classes(images, dataset_files.labels)
    findings += _find_duplicates(images)
    findings += _find_near_duplicates(images)
    findings += _find_imbalance(images)
    findings += _find_unusual_images(images)
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def _find_unreadable(rejected: Sequence[RejectedFile]) -> list[Finding]:
    stray_files = [
        entry
        for entry in rejected
        if entry.reason in ("not an image by its name", "not in a class folder")
    ]
    bombs = [entry for entry in rejected if "bomb" in entry.reason]
    broken = [entry for entry in rejected if entry not in stray_files and entry not in bombs]
    findings = []
    if broken:
        reason = f"the first: {broken[0].reason}" if len(broken) > 1 else broken[0].reason
        message = f"Cannot read {_files_text(broken)}; {reason} Replace or remove them."
        findings.append(_files_finding("unreadable", "warning", message, broken))
    if bombs:
        message = f"{_files_text(bombs)} declared larger than any photo (decompression bombs). Remove them."
        findings.append(_files_finding("bombs", "warning", message, bombs))
    if stray_files:
        message = f"{_files_text(stray_files)} ignored: {stray_files[0].reason}."
        findings.append(_files_finding("strays", "note", message, stray_files))
    return findings


def _find_empty_classes(images: Sequence[InspectedFile], labels: Sequence[str]) -> list[Finding]:
    splits = sorted({image.file.split or "" for image in images})
    present = {(image.file.split or "", image.file.label) for image in images}
    missing = [
        (split, label) for split in splits for label in labels if (split, label) not in present
    ]
    return [_empty_class_finding(split, label) for split, label in missing]


def _empty_class_finding(split: str, label: str) -> Finding:
    folder = f" of {split}/" if split else ""
    message = f"Class {label}{folder} has no readable image."
    if split == "test":
        return Finding("empty", "warning", f"{message} The test figures leave it out. Add some.")
    return Finding("empty", "error", f"{message} Add some, or remove it.")


def _find_duplicates(images: Sequence[InspectedFile]) -> list[Finding]:
    by_pixels: dict[str, list[InspectedFile]] = defaultdict(list)
    for image in images:
        by_pixels[image.pixels_sha256].append(image)
    return _group_findings(
        [group for group in by_pixels.values() if len(group) > 1],
        "identical images",
        "error",
        "duplicates",
    )


def _find_near_duplicates(images: Sequence[InspectedFile]) -> list[Finding]:
    groups = [[images[index] for index in group] for group in group_near_duplicates(images)]
    # Only a warning: whether similar images, such as a burst, may be in both splits is up to the
    # user.
    return _group_findings(groups, "similar images", "warning", "near duplicates")


def _group_findings(
    groups: list[list[InspectedFile]], noun: str, severity: Severity, kind: str
) -> list[Finding]:
    leaks = group_leaks(groups, lambda image: image.file.split)
    across = [group for leaking in leaks.values() for group in leaking]
    contradictory = [group for group in groups if len({image.file.label for image in group}) > 1]
    within = [group for group in groups if group not in across and group not in contradictory]
    findings = []
    for splits, leaking in leaks.items():
        location, effect = LEAKS[splits]
        message = (
            f"{_groups_text(leaking)} of {noun} in {location}: {effect}. "
            "Keep those of each group in one split only."
        )
        findings.append(Finding(f"{kind} across splits", severity, message, _group_paths(leaking)))
    if contradictory:
        message = f"{_groups_text(contradictory)} of {noun} under more than one label. Correct the labels."
        findings.append(
            Finding(
                f"{kind} with contradictory labels", severity, message, _group_paths(contradictory)
            )
        )
    if within:
        redundant = sum(len(group) - 1 for group in within)
        message = (
            f"{_groups_text(within)} of {noun}, {redundant} of them redundant: duplicates weigh more "
            "in training."
        )
        findings.append(
            Finding(
                f"{kind} in a class",
                "warning" if severity == "error" else "note",
                message,
                _group_paths(within),
            )
        )
    return findings


def _find_imbalance(images: Sequence[InspectedFile]) -> list[Finding]:
    counts = Counter(image.file.label for image in images if image.file.split in (None, "train"))
    if len(counts) < 2:
        return []
    ranking = counts.most_common()
    (largest_class, largest), (smallest_class, smallest) = ranking[0], ranking[-1]
    if largest < IMBALANCE_RATIO * smallest:
        return []
    message = (
        f"Class {largest_class} has {largest} training images, {smallest_class} {smallest}: "
        "accuracy hardly depends on rare classes. "
        "Add images, or train with --sampling balanced or --class-weights balanced."
    )
    return [Finding("imbalance", "warning", message)]


def _find_unusual_images(images: Sequence[InspectedFile]) -> list[Finding]:
    findings = []
    small = [image.file for image in images if min(image.width, image.height) < _SMALL_SIDE]
    if small:
        message = (
            f"{_files_text(small)} less than {_SMALL_SIDE} pixels high or wide: too little detail. "
            "Check them."
        )
        findings.append(_files_finding("tiny", "warning", message, small))
    rotated = [image.file for image in images if image.orientation != 1]
    if rotated:
        message = (
            f"{_files_text(rotated)} with an EXIF orientation: edgetl rotates them upright, other "
            "programs may not."
        )
        findings.append(_files_finding("orientation", "note", message, rotated))
    animated = [image.file for image in images if image.is_animated]
    if animated:
        message = f"{_files_text(animated)} with several frames: only the first is used."
        findings.append(_files_finding("animated", "note", message, animated))
    converted = [image for image in images if image.mode not in ("RGB", "L")]
    if converted:
        mode_counts = Counter(image.mode for image in converted).most_common()
        modes = ", ".join(f"{count} {mode}" for mode, count in mode_counts)
        message = f"{_files_text(converted)} neither RGB nor grayscale ({modes}): converted to RGB."
        files = [image.file for image in converted]
        findings.append(_files_finding("modes", "note", message, files))
    return findings


def _files_finding(
    kind: str, severity: Severity, message: str, files: Sequence[LabeledFile | RejectedFile]
) -> Finding:
    return Finding(kind, severity, message, tuple((file.path,) for file in files))


def _group_paths(groups: Sequence[Sequence[InspectedFile]]) -> tuple[tuple[Path, ...], ...]:
    return tuple(tuple(image.file.path for image in group) for group in groups)


def _files_text(entries: Sequence[object]) -> str:
    return f"{len(entries):,} file" + "s" * (len(entries) != 1)


def _groups_text(groups: Sequence[object]) -> str:
    return f"{len(groups):,} group" + "s" * (len(groups) != 1)
