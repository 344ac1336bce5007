"""A bundle's model, ready to answer: uint8 images in, logits and labels out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgetl.core.config.export import InputKind
from edgetl.core.errors import BundleError, ConfigError, DecodeError
from edgetl.core.preprocessing import Preprocessing
from edgetl.core.typed_json import FieldError, parse_as
from edgetl.device.runtime.bundle import Bundle, open_bundle, read_metadata
from edgetl.device.runtime.golden import check_logits, gate_tolerance
from edgetl.device.runtime.preprocessing import preprocess
from edgetl.device.runtime.session import create_session, raise_provider_failure
from edgetl.device.runtime.time_limit import run_with_timeout


@dataclass(frozen=True)
class Classifier:
    """One ONNX session with what is needed to feed it and read it."""

    session: onnxruntime.InferenceSession
    labels: list[str]
    preprocessing: Preprocessing
    input: InputKind

    def prepare_input(self, image: NDArray[np.uint8]) -> NDArray[np.uint8] | NDArray[np.float32]:
        """The model's input for one decoded image [height, width, 3]: the image itself, or the preprocessed tensor.

        Raises:
            DecodeError: the model takes images of another size only.
        """
        if self.input != "image":
            return preprocess(image, self.preprocessing)
        if self.fixed_size is not None and image.shape[:2] != self.fixed_size:
            height, width = self.fixed_size
            raise DecodeError(
                f"The image has {image.shape[1]} x {image.shape[0]} pixels; this variant takes {width} x {height} only. "
                "Take a variant without a fixed size, or send images of that size."
            )
        return np.expand_dims(image, 0)

    @cached_property
    def fixed_size(self) -> tuple[int, int] | None:
        """(height, width) of the only images that the model takes; None: of any size, or preprocessed tensors."""
        shape = self.session.get_inputs()[0].shape
        fixed = self.input == "image" and all(isinstance(side, int) for side in shape[1:3])
        return (shape[1], shape[2]) if fixed else None

    def run(
        self, batch: NDArray[np.uint8] | NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(logits, probabilities), both [batch, classes], for a batch in the model's own input format.

        Raises:
            ProviderError: a provider other than the CPU's failed; nothing is answered from elsewhere.
            BundleError: the model cannot be run on it, or answers for another number of classes than there are labels.
        """
        feed = {self.session.get_inputs()[0].name: batch}
        try:
            logits, probabilities = run_with_timeout(
                self.session, ["logits", "probabilities"], feed
            )
        except BundleError:
            raise
        except Exception as cause:  # onnxruntime's exceptions share no base class
            raise_provider_failure(self.session, cause)
            raise BundleError(
                f"The model cannot be run: {' '.join(str(cause).split())} Export the bundle again."
            ) from cause
        shape = (len(batch), len(self.labels))
        if logits.shape != shape or probabilities.shape != shape:
            raise BundleError(
                f"The model answers {logits.shape} logits and {probabilities.shape} probabilities for {len(self.labels)} labels. "
                "Export the bundle again."
            )
        return logits, probabilities

    def classify(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities [classes] of one decoded image [height, width, 3]."""
        probabilities: NDArray[np.float32] = self.run(self.prepare_input(image))[1][0]
        return probabilities


@dataclass(frozen=True)
class _ModelMetadata:
    """An ONNX file's own, as far as it is needed to answer."""

    labels: list[str]
    preprocessing: dict[str, Any]
    input: InputKind


def open_classifier(
    path: Path, variant: str | None = None, provider: str = "cpu", threads: int | None = None
) -> Classifier:
    """The model of a bundle, of a run directory's bundle, or of a lone ONNX file that edgetl wrote.

    Raises:
        BundleError: missing, altered, or an ONNX file without edgetl's metadata.
        ProviderError: see `create_session`.
    """
    if path.suffix == ".onnx":
        if not path.is_file():
            raise BundleError(f"No ONNX file at {path}.")
        session = create_session(path, provider, threads)
        stated = read_metadata(session.get_modelmeta().custom_metadata_map)
        if not {"labels", "preprocessing", "input"} <= stated.keys():
            raise BundleError(
                f"{path} carries no labels and preprocessing of edgetl's. Give a bundle, or a file that edgetl exported."
            )
        try:
            metadata = parse_as(_ModelMetadata, stated, "its metadata", extra="ignore")
            return Classifier(
                session,
                metadata.labels,
                Preprocessing.from_json(metadata.preprocessing),
                metadata.input,
            )
        except (FieldError, ConfigError) as cause:
            raise BundleError(f"{path} is broken: {cause}. Export it again.") from cause
    return open_bundle_classifier(open_bundle(path), variant, provider, threads)


def open_bundle_classifier(
    bundle: Bundle, variant: str | None = None, provider: str = "cpu", threads: int | None = None
) -> Classifier:
    """As `open_classifier`, for a bundle already open."""
    chosen = bundle.select_variant(variant)
    session = create_session(
        bundle.variant_path(chosen), provider, threads, precision=chosen.precision
    )
    return Classifier(session, bundle.labels, bundle.preprocessing, chosen.input)


def open_verified_classifier(
    path: Path, variant: str | None = None, provider: str = "cpu", threads: int | None = None
) -> Classifier:
    """As `open_classifier`, once a bundle's reference images have been answered right by this very session.

    Raises:
        BundleError: as `open_classifier`; or the answers are not those that were proven. A lone ONNX file has nothing to compare with.
    """
    if path.suffix == ".onnx":
        return open_classifier(path, variant, provider, threads)
    bundle = open_bundle(path)
    chosen, golden = bundle.select_variant(variant), bundle.load_golden()
    classifier = open_bundle_classifier(bundle, chosen.name, provider, threads)
    logits = np.stack(
        [
            classifier.run(classifier.prepare_input(image))[0][0]
            for image in golden.load_images(chosen)
        ]
    ).astype(np.float64)
    reference = golden.logits_for(chosen)
    tolerance = gate_tolerance(reference, provider, golden.tolerance, chosen.tolerance)
    gate = check_logits(logits, reference, tolerance)
    if not gate["passed"]:
        raise BundleError(
            f"{chosen.name} does not answer here as it was proven to: {gate['reason']}. `edgetl verify {path}` tells of all variants."
        )
    return classifier
