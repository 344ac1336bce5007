"""Which images LoadGen asks for, and what counts as their right answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from edgetl.core.config.export import InputKind
from edgetl.core.errors import DataError
from edgetl.core.formatting import pluralize
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.hardware.memory import free_memory_bytes
from edgetl.device.runtime.bundle import Bundle, Variant
from edgetl.device.runtime.images import list_images, open_image, read_image_file

MAX_RESIDENT_SAMPLES = 1024
"""Samples held in memory at once, as MLPerf sets it for its image classifier."""
_MAX_MEMORY_SHARE = 0.25


@dataclass(frozen=True)
class SampleSet:
    """Images in LoadGen's order of indices."""

    files: tuple[Path, ...]
    accepted_classes: tuple[frozenset[int], ...]
    """For each image the classes that count as right: more than one where the reference itself is undecided."""
    reference_kind: Literal["labels", "reference"]
    description: str

    def find_mistakes(
        self, answers: Mapping[int, int], labels: Sequence[str]
    ) -> tuple[dict[str, str], ...]:
        """{"file", "answer", "wanted"} for each image that has no answer or a wrong one."""
        return tuple(
            {
                "file": str(path),
                "answer": labels[answer]
                if (answer := answers.get(index, -1)) in range(len(labels))
                else "none",
                "wanted": " or ".join(labels[one] for one in sorted(wanted)),
            }
            for index, (path, wanted) in enumerate(
                zip(self.files, self.accepted_classes, strict=True)
            )
            if answers.get(index, -1) not in wanted
        )


def load_golden_samples(bundle: Bundle, variant: Variant) -> SampleSet:
    """The bundle's reference images; right is what PyTorch answers, a tie within the tolerance included.

    Raises:
        BundleError: a file is missing or altered.
    """
    golden = bundle.load_golden()
    tolerance = max(golden.tolerance, variant.tolerance or 0.0)
    accepted = [
        frozenset(np.flatnonzero(row >= row.max() - tolerance).tolist()) for row in golden.logits
    ]
    files = tuple(path.resolve() for path in golden.files)
    return SampleSet(
        files,
        tuple(accepted),
        "reference",
        f"the bundle's {pluralize(len(files), 'reference image')}",
    )


def load_labeled_samples(folder: Path, labels: Sequence[str]) -> SampleSet:
    """The images of a folder of folders, or of its val/ where it has one; a folder's name is its images' label.

    Raises:
        DataError: there are none, or a folder is called as no label is.
    """
    inner = folder / "val"
    place = inner if inner.is_dir() and "val" not in labels else folder
    if not place.is_dir():
        raise DataError(
            f"No folder at {folder}. --data takes a folder with a folder of images for each label."
        )
    classes = sorted(
        entry for entry in place.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    unknown = [entry.name for entry in classes if entry.name not in labels]
    if unknown:
        raise DataError(
            f"{place} has folders that are no labels of the bundle: {', '.join(unknown)}. It knows: {', '.join(labels)}."
        )
    found = [
        (path.resolve(), labels.index(entry.name))
        for entry in classes
        for path in list_images(entry)
    ]
    if not found:
        raise DataError(
            f"No labelled images in {place}. --data takes a folder with a folder of images for each label."
        )
    described = f"{pluralize(len(found), 'image')} of {pluralize(len(classes), 'label')} in {place}"
    return SampleSet(
        tuple(path for path, _ in found),
        tuple(frozenset([label]) for _, label in found),
        "labels",
        described,
    )


def count_resident_samples(
    files: Sequence[Path], scope: str, kind: InputKind, contract: Preprocessing
) -> int:
    """How many samples fit into memory at once: LoadGen loads no more for a performance run, and part by part for an accuracy run."""
    if scope == "model":
        largest = 3 * contract.resize**2 if kind == "image" else 12 * contract.crop**2
    else:
        largest = max(map(_decoded_bytes, files))
    return max(
        1,
        min(
            len(files), MAX_RESIDENT_SAMPLES, int(_MAX_MEMORY_SHARE * free_memory_bytes() / largest)
        ),
    )


def _decoded_bytes(path: Path) -> int:
    try:
        with open_image(read_image_file(path)) as image:
            return 3 * image.width * image.height
    except Exception:  # what is wrong with it is told when it is loaded
        return 1
