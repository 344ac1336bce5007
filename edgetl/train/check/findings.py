"""From facts to findings: what is wrong, how bad it is, and what to do about it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgetl.train.check.inspect_files import InspectedFile
from edgetl.train.check.near_duplicates import group_near_duplicates
from edgetl.train.data.folders import RejectedFile

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""Worst first. An error makes figures wrong or training impossible; a warning costs accuracy or time; a note is to be known."""
IMBALANCE_RATIO = 10
"""The largest class with so many times the smallest's images is worth a word."""
_SMALL_SIDE = 32


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    kind: str
    severity: Severity
    message: str
    """With the next step."""
    groups: tuple[tuple[Path, ...], ...] = ()
    """The files that it is about: alone, or those that belong together."""

    @property
    def files(self) -> list[Path]:
        """All of them, each once."""
        return list(dict.fromkeys(path for group in self.groups for path in group))


def find_problems(
    examined: Sequence[InspectedFile],
    rejected: Sequence[RejectedFile],
    labels: Sequence[str],
    problems: Sequence[str],
) -> list[Finding]:
    """Everything that is wrong, worst first.

    Args:
        problems: what is wrong with the folders themselves.
    """
    found = [Finding("folders", "error", problem) for problem in problems]
    found += _find_unreadable(rejected)
    found += _find_empty_classes(examined, labels)
    found += _find_duplicates(examined)
    found += _find_near_duplicates(examined)
    found += _find_imbalance(examined)
    found += _find_unusual_images(examined)
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def _find_unreadable(rejected: Sequence[RejectedFile]) -> list[Finding]:
    strays = [
        entry
        for entry in rejected
        if entry.reason in ("not an image by its name", "not in a class folder")
    ]
    bombs = [entry for entry in rejected if "bomb" in entry.reason]
    broken = [entry for entry in rejected if entry not in strays and entry not in bombs]
    found = []
    if broken:
        told = f"the first: {broken[0].reason}" if len(broken) > 1 else broken[0].reason
        found.append(
            Finding(
                "unreadable",
                "warning",
                f"{_files_text(broken)} cannot be read; {told} Replace or remove them.",
                _single_file_groups(broken),
            )
        )
    if bombs:
        message = f"{_files_text(bombs)} declare more pixels than any photo has (decompression bombs). Remove them."
        found.append(Finding("bombs", "warning", message, _single_file_groups(bombs)))
    if strays:
        found.append(
            Finding(
                "strays",
                "note",
                f"{_files_text(strays)} not taken for images: {strays[0].reason}.",
                _single_file_groups(strays),
            )
        )
    return found


def _find_empty_classes(examined: Sequence[InspectedFile], labels: Sequence[str]) -> list[Finding]:
    parts = sorted({image.file.split or "" for image in examined})
    there = {(image.file.split or "", image.file.label) for image in examined}
    absent = [(part, label) for part in parts for label in labels if (part, label) not in there]
    return [
        Finding(
            "empty",
            "error",
            f"Class {label}{f' of {part}/' if part else ''} has no image that can be read. Add some, or remove it.",
        )
        for part, label in absent
    ]


def _find_duplicates(examined: Sequence[InspectedFile]) -> list[Finding]:
    by_pixels: dict[str, list[InspectedFile]] = defaultdict(list)
    for image in examined:
        by_pixels[image.pixels_sha256].append(image)
    return _group_findings(
        [group for group in by_pixels.values() if len(group) > 1],
        "the same pixels",
        "error",
        "duplicates",
    )


def _find_near_duplicates(examined: Sequence[InspectedFile]) -> list[Finding]:
    groups = [[examined[index] for index in group] for group in group_near_duplicates(examined)]
    # Likeness is a judgement: two photos of a burst are alike and rightly in both parts of nobody's mind but the user's.
    return _group_findings(groups, "pictures that look alike", "warning", "near duplicates")


def _group_findings(
    groups: list[list[InspectedFile]], what: str, severity: Severity, kind: str
) -> list[Finding]:
    across = [group for group in groups if len({image.file.split for image in group}) > 1]
    contradictory = [group for group in groups if len({image.file.label for image in group}) > 1]
    within = [group for group in groups if group not in across and group not in contradictory]
    found = []
    if across:
        message = f"{_groups_text(across)} of {what} in both train and val: validation accuracy is flattered. Remove one of each."
        found.append(Finding(f"{kind} across splits", severity, message, _group_paths(across)))
    if contradictory:
        message = f"{_groups_text(contradictory)} of {what} under more than one label. Correct the labels."
        found.append(
            Finding(
                f"{kind} with contradictory labels", severity, message, _group_paths(contradictory)
            )
        )
    if within:
        more = sum(len(group) - 1 for group in within)
        message = f"{_groups_text(within)} of {what}, {more} more than needed: they count as often as they are there."
        found.append(
            Finding(
                f"{kind} in a class",
                "warning" if severity == "error" else "note",
                message,
                _group_paths(within),
            )
        )
    return found


def _find_imbalance(examined: Sequence[InspectedFile]) -> list[Finding]:
    counts = Counter(image.file.label for image in examined if image.file.split != "val")
    if len(counts) < 2:
        return []
    (most, largest), (least, smallest) = counts.most_common()[0], counts.most_common()[-1]
    if largest < IMBALANCE_RATIO * smallest:
        return []
    message = (
        f"Class {most} has {largest} training images, {least} {smallest}: accuracy will hide the rare ones. "
        "Add images, or train with --sampling balanced or --class-weights balanced."
    )
    return [Finding("imbalance", "warning", message)]


def _find_unusual_images(examined: Sequence[InspectedFile]) -> list[Finding]:
    found = []
    small = [image for image in examined if min(image.width, image.height) < _SMALL_SIDE]
    if small:
        message = f"{_files_text(small)} less than {_SMALL_SIDE} pixels high or wide: there is little to see. Look at them."
        found.append(Finding("tiny", "warning", message, _single_image_groups(small)))
    turned = [image for image in examined if image.orientation != 1]
    if turned:
        message = f"{_files_text(turned)} stored turned, with EXIF's orientation: edgetl turns them upright, other programs may not."
        found.append(Finding("orientation", "note", message, _single_image_groups(turned)))
    animated = [image for image in examined if image.is_animated]
    if animated:
        message = f"{_files_text(animated)} with several frames: the first one counts."
        found.append(Finding("animated", "note", message, _single_image_groups(animated)))
    odd = [image for image in examined if image.mode not in ("RGB", "L")]
    if odd:
        modes = ", ".join(
            f"{count} {mode}" for mode, count in Counter(image.mode for image in odd).most_common()
        )
        found.append(
            Finding(
                "modes",
                "note",
                f"{_files_text(odd)} neither RGB nor grey ({modes}): converted to RGB.",
                _single_image_groups(odd),
            )
        )
    return found


def _single_file_groups(entries: Sequence[RejectedFile]) -> tuple[tuple[Path, ...], ...]:
    return tuple((entry.path,) for entry in entries)


def _single_image_groups(images: Sequence[InspectedFile]) -> tuple[tuple[Path, ...], ...]:
    return tuple((image.file.path,) for image in images)


def _group_paths(groups: Sequence[Sequence[InspectedFile]]) -> tuple[tuple[Path, ...], ...]:
    return tuple(tuple(image.file.path for image in group) for group in groups)


def _files_text(entries: Sequence[object]) -> str:
    return f"{len(entries):,} file" + "s" * (len(entries) != 1)


def _groups_text(groups: Sequence[object]) -> str:
    return f"{len(groups):,} group" + "s" * (len(groups) != 1)
