"""LoadGen's samples and their accepted classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from edgetl.core.artifacts.bundle import VariantRecord
from edgetl.core.artifacts.loadgen import WrongPrediction
from edgetl.core.config.export import InputKind
from edgetl.core.errors import DataError
from edgetl.core.formatting import pluralize
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.hardware.memory import free_memory_bytes
from edgetl.device.runtime.bundle import Bundle
from edgetl.device.runtime.images import list_images, open_image, read_image_file

MAX_RESIDENT_SAMPLES = 1024
"""Largest number of samples in memory, as in MLPerf's image classification benchmark."""
_MAX_MEMORY_SHARE = 0.25


@dataclass(frozen=True)
class SampleSet:
    """Images by LoadGen's sample index."""

    files: tuple[Path, ...]
    accepted_classes: tuple[frozenset[int], ...]
    """Accepted classes of each image; several if the reference logits are tied."""
    reference_kind: Literal["labels", "reference"]
    description: str

    def find_mistakes(
        self, predictions: Mapping[int, int], labels: Sequence[str]
    ) -> tuple[WrongPrediction, ...]:
        """Return the images with a wrong or missing prediction."""
        mistakes = []
        samples = zip(self.files, self.accepted_classes, strict=True)
        for index, (path, accepted) in enumerate(samples):
            predicted = predictions.get(index, -1)
            if predicted in accepted:
                continue
            is_valid = predicted in range(len(labels))
            mistakes.append(
                WrongPrediction(
                    file=str(path),
                    answer=labels[predicted] if is_valid else "none",
                    expected=" or ".join(labels[label] for label in sorted(accepted)),
                )
            )
        return tuple(mistakes)


def load_golden_samples(bundle: Bundle, variant: VariantRecord) -> SampleSet:
    """Return the golden images; PyTorch's classes are accepted, ties within the tolerance too.

    Raises:
        BundleError: a file is missing or modified.
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
        f"the bundle's {pluralize(len(files), 'golden image')}",
    )


def load_labeled_samples(folder: Path, labels: Sequence[str]) -> SampleSet:
    """Return the images in the class folders of `folder`, or of its val/ if there is one.

    Raises:
        DataError: there are no images, or a class folder is not a label of the bundle.
    """
    val_folder = folder / "val"
    if val_folder.is_dir() and "val" not in labels:
        folder = val_folder
    if not folder.is_dir():
        raise DataError(
            f"Folder not found: {folder}. --data takes a folder with a folder of images per label."
        )
    classes = sorted(
        entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    unknown = [entry.name for entry in classes if entry.name not in labels]
    if unknown:
        raise DataError(
            f"{folder} has folders that are not labels of the bundle: {', '.join(unknown)}. "
            f"The labels are: {', '.join(labels)}."
        )
    labeled_files = [
        (path.resolve(), labels.index(entry.name))
        for entry in classes
        for path in list_images(entry)
    ]
    if not labeled_files:
        raise DataError(
            f"No labeled images found in {folder}. "
            "--data takes a folder with a folder of images per label."
        )
    images = pluralize(len(labeled_files), "image")
    return SampleSet(
        tuple(path for path, _ in labeled_files),
        tuple(frozenset([label]) for _, label in labeled_files),
        "labels",
        f"{images} of {pluralize(len(classes), 'label')} in {folder}",
    )


def count_resident_samples(
    files: Sequence[Path], scope: str, input_kind: InputKind, preprocessing: Preprocessing
) -> int:
    """Return the number of samples that fit into memory at once.

    LoadGen loads no more samples in performance mode, and loads them in portions in accuracy mode.
    """
    if scope != "model":
        sample_bytes = max(map(_decoded_bytes, files))
    elif input_kind == "image":
        sample_bytes = 3 * preprocessing.resize**2
    else:
        sample_bytes = 12 * preprocessing.crop**2
    fitting = int(_MAX_MEMORY_SHARE * free_memory_bytes() / sample_bytes)
    return max(1, min(len(files), MAX_RESIDENT_SAMPLES, fitting))


def _decoded_bytes(path: Path) -> int:
    try:
        with open_image(read_image_file(path)) as image:
            return 3 * image.width * image.height
    except Exception:  # loading the sample reports the error
        return 1
