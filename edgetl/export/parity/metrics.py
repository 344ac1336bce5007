"""What a file's answers on the proof images are worth: accuracy, and where they differ from PyTorch's."""

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
"""On another device a file may be so many times as far from PyTorch as it was here."""
_MAX_LISTED_FLIPS = 50
"""Most flips that are named in bundle.json."""


@dataclass(frozen=True)
class EvaluationImages:
    """The images that an export is proven on."""

    files: Sequence[Path]
    labels: Sequence[str] | None
    """True labels, where accuracy may be measured on these images."""
    kind: str
    """`validation`, `training`, `given` or `generated`."""


@dataclass(frozen=True)
class LabelFlip:
    """An image that two models label differently."""

    file: Path
    truth: str | None
    expected: str
    """PyTorch's label."""
    predicted: str


def logits_for_images(
    file: Path, images: EvaluationImages, contract: Preprocessing, input_kind: InputKind
) -> Logits:
    """Logits [images, classes] of a whole ONNX file for decoded photos, one at a time."""
    decoded = (load_image(path) for path in images.files)
    return logits_for_batches(
        file,
        (
            image[None] if input_kind == "image" else preprocess(image, contract)
            for image in decoded
        ),
    )


def logits_for_batches(file: Path, feeds: Iterable[NDArray[np.generic]]) -> Logits:
    """Logits [all rows, classes] of an ONNX file for batches of its input."""
    session = create_session(file)
    name = session.get_inputs()[0].name
    return np.concatenate([session.run([LOGITS], {name: feed})[0] for feed in feeds])


def compute_accuracy(
    logits: Logits, reference: Logits, images: EvaluationImages, labels: Sequence[str]
) -> dict[str, Any]:
    """What a file itself got right; empty where there are no labels to compare with.

    Args:
        logits: the file's, [images, classes].
        reference: PyTorch's.
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
    logits: Logits, reference: Logits, kind: str, on_golden: float
) -> dict[str, Any]:
    """How far a smaller variant's answers are from PyTorch's: its `parity` in bundle.json.

    Args:
        on_golden: largest difference on the bundle's reference images, which a device will be checked with.
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
            "tolerance": CROSS_DEVICE_MARGIN * max(largest, on_golden),
        }
    }


def find_label_flips(
    logits: Logits, reference: Logits, images: EvaluationImages, labels: Sequence[str]
) -> list[LabelFlip]:
    """The images that the file labels otherwise than PyTorch, in order."""
    found, expected = logits.argmax(1), reference.argmax(1)
    return [
        LabelFlip(
            images.files[index],
            images.labels[index] if images.labels else None,
            labels[expected[index]],
            labels[found[index]],
        )
        for index in (int(index) for index in np.flatnonzero(found != expected))
    ]


def label_flips_to_json(found: Sequence[LabelFlip]) -> list[dict[str, Any]]:
    """As they stand in bundle.json: folder and name of the file, so that no path of this machine travels."""
    return [
        {
            "image": "/".join(flip.file.parts[-2:]),
            "truth": flip.truth,
            "pytorch": flip.expected,
            "onnx": flip.predicted,
        }
        for flip in found[:_MAX_LISTED_FLIPS]
    ]
