"""Confidence of a variant: what its graph computes and its records say."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgetl.core.artifacts.bundle import VariantRecord
from edgetl.core.artifacts.confidence import CalibrationRecord, CoverageLevel, UnknownRecord
from edgetl.core.artifacts.model_metadata import ModelMetadata
from edgetl.export.confidence.unknown import UnknownModel


@dataclass(frozen=True)
class Confidence:
    """Confidence of a variant's predictions; without validation images all parts are missing."""

    calibration: CalibrationRecord | None = None
    prediction_sets: tuple[CoverageLevel, ...] = ()
    unknown_model: UnknownModel | None = None
    unknown: UnknownRecord | None = None

    @property
    def temperature(self) -> float:
        """Divisor of the logits in the softmax."""
        return 1.0 if self.calibration is None else self.calibration.temperature

    def without_intermediate(self) -> Confidence:
        """Return a reference for a network that does not output intermediate features."""
        if self.unknown_model is None or self.unknown is None:
            return self
        model = self.unknown_model.without_intermediate()
        detector = replace(self.unknown.detector, method=model.score.method)
        return replace(self, unknown_model=model, unknown=replace(self.unknown, detector=detector))

    def add_to_metadata(self, metadata: ModelMetadata) -> ModelMetadata:
        """Return the metadata with what readers of the ONNX file need."""
        return replace(
            metadata,
            temperature=self.temperature,
            unknown=None if self.unknown is None else self.unknown.detector,
            prediction_sets=self.prediction_sets,
        )

    def add_to_record(self, variant: VariantRecord) -> VariantRecord:
        """Return the variant's record with calibration, unknown images and prediction sets."""
        return replace(
            variant,
            calibration=self.calibration,
            unknown=self.unknown,
            prediction_sets=self.prediction_sets,
        )
