"""Metrics of an ONNX file on the proof images: accuracy, and differences from PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.core.config.export import InputKind
from edgetl.core.preprocessing import Preprocessing
from edgetl.core.statistics import macro_f1, wilson_interval
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import preprocess
from edgetl.device.runtime.session import create_session
from edgetl.export.graph.torch_export import LOGITS

Logits = NDArray[np.float32]
CROSS_DEVICE_MARGIN = 1.25
"""Allowed growth of the logit difference on another device."""
_MAX_LISTED_FLIPS = 50
"""Largest number of flips listed in bundle.json."""


@dataclass(frozen=True)
class EvaluationImages:
    """Images used to prove an export."""

    files: Sequence[Path]
    labels: Sequence[str] | None
    """True labels; None if accuracy must not be measured on these images."""
    kind: str
    """Source of the images: `validation`, `training`, `given` or `generated`."""


@dataclass(frozen=True)
class LabelFlip:
    """An image with different labels from PyTorch and from the ONNX file."""

    file: Path
    truth: str | None
    expected: str
    """PyTorch's label."""
    predicted: str


def logits_for_images(
    file: Path, images: EvaluationImages, preprocessing: Preprocessing, input_kind: InputKind
) -> Logits:
    """Run a bundle's ONNX file on decoded photos, one by one; return logits [images, classes]."""
    decoded = (load_image(path) for path in images.files)
    batches = (
        image[None] if input_kind == "image" else preprocess(image, preprocessing)
        for image in decoded
    )
    return logits_for_batches(file, batches)


def logits_for_batches(file: Path, batches: Iterable[NDArray[np.generic]]) -> Logits:
    """Run an ONNX file on batches of its input; return logits [all rows, classes]."""
    session = create_session(file)
    name = session.get_inputs()[0].name
    return np.concatenate([session.run([LOGITS], {name: batch})[0] for batch in batches])


def compute_accuracy(
    logits: Logits, reference: Logits, images: EvaluationImages, labels: Sequence[str]
) -> dict[str, Any]:
    """Compute the file's accuracy entry for bundle.json; empty without true labels.

    Args:
        logits: of the file, [images, classes].
        reference: of PyTorch, [images, classes].
        images: proof images with their true labels.
        labels: class names, in the order of the logits.
    """
    if images.labels is None:
        return {}
    truth = np.array([labels.index(label) for label in images.labels])
    predicted = logits.argmax(1)
    confusion: NDArray[np.int64] = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion, (truth, predicted), 1)
    hits = int((truth == predicted).sum())
    expected_hits = int((truth == reference.argmax(1)).sum())
    return {
        "split": images.kind,
        "images": len(truth),
        "top1": hits / len(truth),
        "ci95": list(wilson_interval(hits, len(truth))),
        "macro_f1": macro_f1(confusion.tolist()),
        "drop": 100.0 * (expected_hits - hits) / len(truth),
        "flips": int((predicted != reference.argmax(1)).sum()),
    }


def compute_parity(
    logits: Logits, reference: Logits, kind: str, golden_difference: float
) -> dict[str, Any]:
    """Compute a smaller variant's `parity` entry for bundle.json.

    Args:
        logits: of the variant, [images, classes].
        reference: of PyTorch, [images, classes].
        kind: source of the images; see `EvaluationImages.kind`.
        golden_difference: largest logit difference on the golden images, which devices are
            checked with.
    """
    difference = np.abs(logits - reference)
    largest = float(difference.max())
    return {
        "path": {
            "images": len(logits),
            "kind": kind,
            "max_abs_diff": largest,
            "mean_abs_diff": float(difference.mean()),
            "top1_agreement": float((logits.argmax(1) == reference.argmax(1)).mean()),
            "tolerance": CROSS_DEVICE_MARGIN * max(largest, golden_difference),
        }
    }


def find_label_flips(
    logits: Logits, reference: Logits, images: EvaluationImages, labels: Sequence[str]
) -> list[LabelFlip]:
    """Return the images whose label differs from PyTorch's, in order."""
    predicted, expected = logits.argmax(1), reference.argmax(1)
    return [
        LabelFlip(
            images.files[index],
            images.labels[index] if images.labels else None,
            labels[expected[index]],
            labels[predicted[index]],
        )
        for index in np.flatnonzero(predicted != expected).tolist()
    ]


def label_flips_to_json(flips: Sequence[LabelFlip]) -> list[dict[str, Any]]:
    """Return the flips' entries in bundle.json.

    Images are identified by folder and file name, so that no path of this machine is published.
    """
    return [
        {
            "image": "/".join(flip.file.parts[-2:]),
            "truth": flip.truth,
            "pytorch": flip.expected,
            "onnx": flip.predicted,
        }
        for flip in flips[:_MAX_LISTED_FLIPS]
    ]
