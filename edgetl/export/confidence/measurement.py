"""Confidence of a file whose network is not ONNX, measured from its outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgetl.device.runtime.golden import softmax
from edgetl.export.confidence.confidence import Confidence
from edgetl.export.confidence.estimator import ConfidenceEstimator
from edgetl.export.confidence.prediction_sets import conformal_levels
from edgetl.export.confidence.temperature import compute_figures
from edgetl.export.confidence.unknown import measure_scores
from edgetl.export.quantize.images import CroppedImages

Outputs = tuple[NDArray[np.float64], NDArray[np.float64] | None]
"""Logits [images, classes], and unknown scores [images] if the file computes them."""


def measure_confidence(
    estimator: ConfidenceEstimator,
    reference: Confidence,
    run: Callable[[CroppedImages], Outputs],
) -> Confidence:
    """Return the confidence of a file that has the temperature and the detector of another.

    The prediction sets are those of the file; all figures are measured anew, except those of
    classes left out, which need detectors of their own.

    Args:
        estimator: images, and the coverages of the prediction sets.
        reference: confidence of the graph that the file was converted from.
        run: compute the file's outputs for images.
    """
    if reference.calibration is None:
        return reference
    images = estimator.validation_images
    labels = images.labels
    assert labels is not None
    logits, scores = run(images)
    probabilities = softmax(logits, reference.temperature)
    true_probabilities = np.take_along_axis(probabilities, labels[:, None], 1)[:, 0]
    confidence = replace(
        reference,
        calibration=replace(
            reference.calibration,
            before=compute_figures(softmax(logits), labels),
            after=compute_figures(probabilities, labels),
        ),
        prediction_sets=conformal_levels(true_probabilities, estimator.config.coverage),
    )
    if reference.unknown is None or scores is None:
        return replace(confidence, unknown_model=None, unknown=None)
    figures = {}
    for kind, unknown_images in estimator.unknown_images.items():
        _, unknown_scores = run(unknown_images)
        assert unknown_scores is not None
        figures[kind] = measure_scores(scores, unknown_scores)
    return replace(confidence, unknown=replace(reference.unknown, figures=figures))
