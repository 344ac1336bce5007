"""Metrics of an ONNX file on the proof images: accuracy, and differences from PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl.core.artifacts.bundle import (
    AccuracyRecord,
    ImageSource,
    LabelFlip,
    ParityRecord,
    PathParity,
)
from edgetl.core.config.export import InputKind
from edgetl.core.preprocessing import Preprocessing
from edgetl.core.statistics import macro_f1, wilson_interval
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import preprocess, resize_to
from edgetl.device.runtime.session import create_session
from edgetl.export.graph.torch_export import LOGITS

Logits = NDArray[np.float32]
CROSS_DEVICE_MARGIN = 1.25
"""Allowed growth of the logit difference on another device."""


@dataclass(frozen=True)
class EvaluationImages:
    """Images used to prove an export."""

    files: Sequence[Path]
    labels: Sequence[str] | None
    """True labels; None if accuracy must not be measured on these images."""
    kind: ImageSource


@dataclass(frozen=True)
class FlippedImage:
    """An image with different labels from PyTorch and from the ONNX file."""

    file: Path
    truth: str | None
    expected: str
    """PyTorch's label."""
    predicted: str

    @property
    def record(self) -> LabelFlip:
        """Entry in bundle.json."""
        image = "/".join(self.file.parts[-2:])
        return LabelFlip(image, self.truth, self.expected, self.predicted)


def load_network_inputs(
    files: Sequence[Path], preprocessing: Preprocessing, size: tuple[int, int] | None = None
) -> NDArray[np.float32]:
    """Return network inputs for photos, float32 [images, 3, S, S].

    Photos are resized to `size` (height, width) first, as for a file with a fixed image size.
    """
    photos = (resize_to(load_image(path), size) for path in files)
    return np.concatenate([preprocess(photo, preprocessing) for photo in photos])


def logits_for_images(
    file: Path,
    images: Sequence[Path],
    preprocessing: Preprocessing,
    input_kind: InputKind,
    size: tuple[int, int] | None = None,
) -> Logits:
    """Run a bundle's ONNX file on decoded photos, one by one; return logits [images, classes].

    For a file with a fixed image size, photos are resized to `size` (height, width) first.
    """
    return logits_for_batches(file, model_inputs(images, preprocessing, input_kind, size))


def model_inputs(
    images: Sequence[Path],
    preprocessing: Preprocessing,
    input_kind: InputKind,
    size: tuple[int, int] | None = None,
) -> Iterator[NDArray[np.generic]]:
    """Yield the model's input for each photo, with a batch dimension."""
    for path in images:
        image = resize_to(load_image(path), size)
        yield image[None] if input_kind == "image" else preprocess(image, preprocessing)


def logits_for_batches(file: Path, batches: Iterable[NDArray[np.generic]]) -> Logits:
    """Run an ONNX file on batches of its input; return logits [all rows, classes]."""
    session = create_session(file)
    name = session.get_inputs()[0].name
    return np.concatenate([session.run([LOGITS], {name: batch})[0] for batch in batches])


def compute_accuracy(
    logits: Logits, reference: Logits, images: EvaluationImages, labels: Sequence[str]
) -> AccuracyRecord | None:
    """Compute the accuracy of a file; None without true labels.

    Args:
        logits: of the file, [images, classes].
        reference: of PyTorch, [images, classes].
        images: proof images with their true labels.
        labels: class names, in the order of the logits.
    """
    if images.labels is None:
        return None
    truth = np.array([labels.index(label) for label in images.labels])
    predicted = logits.argmax(1)
    confusion: NDArray[np.int64] = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion, (truth, predicted), 1)
    hits = int((truth == predicted).sum())
    expected_hits = int((truth == reference.argmax(1)).sum())
    return AccuracyRecord(
        split=images.kind,
        images=len(truth),
        top1=hits / len(truth),
        interval=wilson_interval(hits, len(truth)),
        macro_f1=macro_f1(confusion.tolist()),
        drop=100.0 * (expected_hits - hits) / len(truth),
        flips=int((predicted != reference.argmax(1)).sum()),
    )


def compute_parity(
    logits: Logits, reference: Logits, kind: ImageSource, golden_difference: float
) -> ParityRecord:
    """Compute the parity of a smaller variant with PyTorch.

    Args:
        logits: of the variant, [images, classes].
        reference: of PyTorch, [images, classes].
        kind: source of the images.
        golden_difference: largest logit difference on the golden images, which devices are
            checked with.
    """
    difference = np.abs(logits - reference)
    largest = float(difference.max())
    return ParityRecord(
        PathParity(
            images=len(logits),
            kind=kind,
            max_abs_diff=largest,
            mean_abs_diff=float(difference.mean()),
            top1_agreement=float((logits.argmax(1) == reference.argmax(1)).mean()),
            tolerance=CROSS_DEVICE_MARGIN * max(largest, golden_difference),
        )
    )


def find_label_flips(
    logits: Logits, reference: Logits, images: EvaluationImages, labels: Sequence[str]
) -> list[FlippedImage]:
    """Return the images whose label differs from PyTorch's, in order."""
    predicted, expected = logits.argmax(1), reference.argmax(1)
    return [
        FlippedImage(
            images.files[index],
            images.labels[index] if images.labels else None,
            labels[expected[index]],
            labels[predicted[index]],
        )
        for index in np.flatnonzero(predicted != expected).tolist()
    ]
