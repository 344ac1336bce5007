"""Estimation of a variant's confidence: calibration, prediction sets and unknown score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx

from edgetl.core.artifacts.confidence import UnknownRecord
from edgetl.core.config.export import ExportConfig
from edgetl.core.preprocessing import Preprocessing
from edgetl.core.progress import ProgressCallback
from edgetl.device.evaluation.corruptions import CORRUPTIONS, corrupt
from edgetl.device.runtime.golden import softmax
from edgetl.device.runtime.preprocessing import resize_and_crop
from edgetl.device.runtime.session import create_session
from edgetl.export.confidence.confidence import Confidence
from edgetl.export.confidence.prediction_sets import conformal_levels
from edgetl.export.confidence.temperature import calibrate
from edgetl.export.confidence.unknown import (
    MIN_KNOWN_IMAGES,
    Activations,
    LabeledActivations,
    UnknownModel,
    choose_model,
)
from edgetl.export.golden import draw_images
from edgetl.export.graph.features import (
    FEATURES,
    INTERMEDIATE_FEATURES,
    append_features,
    append_intermediate_features,
)
from edgetl.export.graph.preprocessing import PIXELS
from edgetl.export.graph.torch_export import LOGITS
from edgetl.export.quantize.images import CroppedImages, load_cropped_images, stratified_order

_MAX_VALIDATION_IMAGES = 1000
_MAX_TRAINING_IMAGES = 512
_GENERATED_IMAGES, _GENERATED_SIDES = 32, (160, 320)
_CORRUPTED_IMAGES = 3 * len(CORRUPTIONS)
_SEVERITY = 5
"""Severity of the corruptions, the highest: little of the image can be recognized."""


@dataclass(frozen=True)
class LabeledFiles:
    """Images of a split with their classes."""

    files: Sequence[Path]
    labels: Sequence[int]
    """Class index of each file."""


@dataclass(frozen=True)
class ConfidenceEstimator:
    """Estimator for the variants of a bundle; images are decoded once."""

    validation: LabeledFiles
    """Empty if there are no labeled validation images: nothing is estimated then."""
    training: LabeledFiles
    preprocessing: Preprocessing
    config: ExportConfig
    notify: ProgressCallback

    def estimate(self, network: onnx.ModelProto, reference: Confidence | None = None) -> Confidence:
        """Estimate the confidence of a variant.

        Args:
            network: `pixels` -> `logits`, of any precision.
            reference: confidence of fp32, whose unknown score is scaled to the variant; None
                chooses and fits a score.
        """
        if not self.validation.files:
            return Confidence()
        self.notify("Calibrating probabilities", 0, 0)
        labels = self.validation_images.labels
        assert labels is not None
        validation = LabeledActivations(
            compute_activations(network, self.validation_images), labels
        )
        calibration = calibrate(validation.activations.logits, labels)
        probabilities = softmax(validation.activations.logits, calibration.temperature)
        levels = conformal_levels(
            np.take_along_axis(probabilities, labels[:, None], 1)[:, 0], self.config.coverage
        )
        confidence = Confidence(calibration, levels)
        can_detect = len(labels) >= MIN_KNOWN_IMAGES and len(self.training.files) > 1
        if not self.config.unknown or not can_detect:
            return confidence
        self.notify("Fitting the detector of unknown images", 0, 0)
        model, record = self._fit_unknown(network, validation, reference)
        return replace(confidence, unknown_model=model, unknown=record)

    def _fit_unknown(
        self, network: onnx.ModelProto, validation: LabeledActivations, reference: Confidence | None
    ) -> tuple[UnknownModel, UnknownRecord]:
        unknown = {
            kind: compute_activations(network, images)
            for kind, images in self.unknown_images.items()
        }
        if reference is None or reference.unknown_model is None or reference.unknown is None:
            parameters = sum(int(np.prod(value.dims)) for value in network.graph.initializer)
            return choose_model(
                self._training_activations(network), validation, unknown, parameters
            )
        model = reference.unknown_model.scale_to(validation)
        return model, replace(reference.unknown, figures=model.measure(validation, unknown))

    def _training_activations(self, network: onnx.ModelProto) -> LabeledActivations:
        # Mirrored images halve the gap between training and new images in the space of features.
        images = self._training_images
        mirrored = replace(images, pixels=np.ascontiguousarray(images.pixels[:, :, ::-1]))
        parts = [compute_activations(network, part) for part in (images, mirrored)]
        assert images.labels is not None
        return LabeledActivations(
            Activations.concatenate(parts), np.concatenate([images.labels, images.labels])
        )

    @cached_property
    def validation_images(self) -> CroppedImages:
        """Labeled validation images."""
        return self._load(self.validation, _MAX_VALIDATION_IMAGES)

    @cached_property
    def _training_images(self) -> CroppedImages:
        return self._load(self.training, _MAX_TRAINING_IMAGES)

    @property
    def unknown_images(self) -> dict[str, CroppedImages]:
        """Images of no class, by kind."""
        return {"generated": self._generated_images, "corrupted": self._corrupted_images}

    @cached_property
    def _generated_images(self) -> CroppedImages:
        images = draw_images(_GENERATED_IMAGES, _GENERATED_SIDES)
        crops = [resize_and_crop(image, self.preprocessing) for image in images]
        return CroppedImages(np.stack(crops), None, self.preprocessing)

    @cached_property
    def _corrupted_images(self) -> CroppedImages:
        crops = self.validation_images.pixels
        count = min(_CORRUPTED_IMAGES, len(crops))
        pixels = [
            corrupt(crops[index], CORRUPTIONS[index % len(CORRUPTIONS)], _SEVERITY, seed=index)
            for index in range(count)
        ]
        return CroppedImages(np.stack(pixels), None, self.preprocessing)

    def _load(self, images: LabeledFiles, limit: int) -> CroppedImages:
        order = stratified_order(images.labels)[:limit]
        return load_cropped_images(order, images.files, images.labels, self.preprocessing)


def compute_activations(network: onnx.ModelProto, images: CroppedImages) -> Activations:
    """Run a network on images; features are empty if its last layer is not found."""
    model = onnx.ModelProto()
    model.CopyFrom(network)
    names = [LOGITS]
    if append_features(model):
        names.append(FEATURES)
    if append_intermediate_features(model):
        names.append(INTERMEDIATE_FEATURES)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names[1:])
    session = create_session(model.SerializeToString(), spinning=False)
    outputs = [session.run(names, {PIXELS: batch}) for batch in images.batches()]
    columns = zip(*outputs, strict=True)
    values = {
        name: np.concatenate(parts).astype(np.float64)
        for name, parts in zip(names, columns, strict=True)
    }
    features = values.get(FEATURES, np.empty((len(values[LOGITS]), 0)))
    return Activations(features, values[LOGITS], values.get(INTERMEDIATE_FEATURES))
