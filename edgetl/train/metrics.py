"""The finished run's figures, as they stand in metrics.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from edgetl.core.statistics import class_scores, macro_f1, wilson_interval
from edgetl.train.evaluation import Evaluation


def train_metrics(train: Evaluation) -> dict[str, Any]:
    """Accuracy on the training images, without augmentation, with the final weights."""
    return {"images": len(train.targets), "accuracy": train.accuracy}


def val_metrics(val: Evaluation | None, labels: Sequence[str]) -> dict[str, Any] | None:
    """Accuracy with its 95% interval, top-5 above 5 classes, macro-F1, calibration error and every class; None without validation."""
    if val is None:
        return None
    confusion = val.confusion()
    scores = class_scores(confusion)
    return {
        "images": len(val.targets),
        "accuracy": val.accuracy,
        "accuracy_ci95": list(wilson_interval(val.hits, len(val.targets))),
        "top5_accuracy": val.top(5) if len(labels) > 5 else None,
        "loss": val.loss,
        "calibration_error": val.calibration_error,
        "macro_f1": macro_f1(confusion),
        "per_class": {label: asdict(score) for label, score in zip(labels, scores, strict=True)},
    }
