"""Metadata inside an ONNX file, which make it usable without its bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgetl.core.artifacts.confidence import CoverageLevel, UnknownDetector, check_temperature
from edgetl.core.config.export import InputKind
from edgetl.core.errors import BundleError
from edgetl.core.files import parse_json
from edgetl.core.preprocessing import Preprocessing
from edgetl.core.typed_json import FieldError, in_json, parse_as, to_json

_METADATA_PREFIX = "edgetl."
"""Prefix of edgetl's keys in an ONNX file's `metadata_props`."""


@dataclass(frozen=True)
class SplitFiles:
    """The files beside a network file that holds neither preprocessing nor softmax."""

    preprocessing: str
    """Name of the file that computes the network's input from photos, in the same folder."""
    postprocessing: str
    """Name of the file that computes probabilities and unknown scores, in the same folder."""

    def __post_init__(self) -> None:
        for name in (self.preprocessing, self.postprocessing):
            if not name.endswith(".onnx") or "/" in name or "\\" in name or "\0" in name:
                raise FieldError(f"{name!r} is not the name of an ONNX file in the same folder")


@dataclass(frozen=True)
class ModelMetadata:
    """Metadata in a variant's ONNX file."""

    labels: tuple[str, ...]
    """Class names in the order of the logits."""
    preprocessing: Preprocessing
    input: InputKind
    run_id: str
    version: str = ""
    """Version of edgetl."""
    model: str = ""
    """Name of the architecture."""
    temperature: float = field(default=1.0, metadata=in_json(omit_default=True))
    """Divisor of the logits in the graph's softmax."""
    unknown: UnknownDetector | None = field(default=None, metadata=in_json(omit_default=True))
    """Detector of unknown images; None if the graph has no output `unknown_score`."""
    prediction_sets: tuple[CoverageLevel, ...] = field(
        default=(), metadata=in_json(omit_default=True)
    )
    activation_maps: bool = field(default=False, metadata=in_json(omit_default=True))
    """Whether the graph has the output `activation_maps`."""
    split: SplitFiles | None = field(default=None, metadata=in_json(omit_default=True))
    """Files that run before and after this one; None for a self-contained file."""

    def __post_init__(self) -> None:
        check_temperature(self.temperature)

    def to_properties(self) -> dict[str, str]:
        """Return the properties to store, with JSON values."""
        return {
            _METADATA_PREFIX + key: json.dumps(value, ensure_ascii=False, sort_keys=True)
            for key, value in to_json(self).items()
        }

    @classmethod
    def from_properties(cls, properties: Mapping[str, str]) -> ModelMetadata | None:
        """Parse the properties of an ONNX file; None if edgetl did not write it.

        Raises:
            BundleError: A value is broken.
        """
        encoded = {
            key.removeprefix(_METADATA_PREFIX): value
            for key, value in properties.items()
            if key.startswith(_METADATA_PREFIX)
        }
        if not encoded:
            return None
        try:
            content = {key: parse_json(value) for key, value in encoded.items()}
            return parse_as(cls, content, "metadata")
        except ValueError as cause:
            raise BundleError(
                f"The metadata of the ONNX file is broken: {cause}. Export it again."
            ) from cause
