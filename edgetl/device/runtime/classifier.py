"""Classify uint8 images with the model of a bundle."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgetl.core.artifacts.bundle import VariantRecord
from edgetl.core.artifacts.confidence import CoverageLevel, UnknownDetector
from edgetl.core.artifacts.model_metadata import ModelMetadata
from edgetl.core.config.export import InputKind
from edgetl.core.errors import BundleError, DecodeError
from edgetl.core.paths import StrPath
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.runtime.bundle import Bundle, open_bundle
from edgetl.device.runtime.explanation import Explanation
from edgetl.device.runtime.golden import GoldenOutputs
from edgetl.device.runtime.onnx_file import ACTIVATION_MAPS
from edgetl.device.runtime.preprocessing import preprocess, resize_and_crop
from edgetl.device.runtime.session import create_session, raise_provider_failure, read_metadata
from edgetl.device.runtime.time_limit import run_with_timeout


class TensorInfo(Protocol):
    """Input of a session: onnxruntime's `NodeArg`."""

    @property
    def name(self) -> str:
        """Name in the graph."""

    @property
    def shape(self) -> Sequence[int | str | None]:
        """Sides; a name or None for a dynamic one."""


class Session(Protocol):
    """Methods of `onnxruntime.InferenceSession`, which has no types of its own."""

    def get_inputs(self) -> Sequence[TensorInfo]:
        """Return the inputs of the graph."""

    def get_providers(self) -> Sequence[str]:
        """Return onnxruntime's names of the execution providers, in order of preference."""


@dataclass(frozen=True)
class ModelOutputs:
    """Outputs of the model for a batch."""

    logits: NDArray[np.float32]
    """[batch, classes]."""
    probabilities: NDArray[np.float32]
    """[batch, classes], calibrated if the export calibrated them."""
    unknown_scores: NDArray[np.float32] | None = None
    """[batch], above UNKNOWN_THRESHOLD for images of no class; None if the model has none."""
    activation_maps: NDArray[np.float32] | None = None
    """[batch, classes, h, w]; None unless the classifier was opened for explanations."""


@dataclass(frozen=True)
class Classifier:
    """ONNX Runtime session with its labels and preprocessing."""

    session: Session
    """The `onnxruntime.InferenceSession`."""
    labels: tuple[str, ...]
    """Names of the classes, in the order of the logits."""
    preprocessing: Preprocessing
    input: InputKind
    """Whether the graph takes images or preprocessed tensors."""
    unknown: UnknownDetector | None = None
    """Detector of unknown images; None if the graph has no output `unknown_score`."""
    prediction_sets: tuple[CoverageLevel, ...] = ()
    has_activation_maps: bool = False
    """Whether the session computes the output `activation_maps`."""

    def __repr__(self) -> str:
        return f"Classifier({len(self.labels)} labels, input={self.input!r})"

    def prepare_input(self, image: NDArray[np.uint8]) -> NDArray[np.uint8] | NDArray[np.float32]:
        """Return the model's input for one decoded image [height, width, 3].

        It is the image or the preprocessed tensor, with a batch dimension.

        Raises:
            DecodeError: the image does not have the model's fixed size.
        """
        if self.input != "image":
            return preprocess(image, self.preprocessing)
        if self.fixed_size is not None and image.shape[:2] != self.fixed_size:
            height, width = self.fixed_size
            raise DecodeError(
                f"The image must have {width} x {height} pixels for this variant, "
                f"got {image.shape[1]} x {image.shape[0]}. "
                "Resize it, or use a variant without a fixed size."
            )
        return np.expand_dims(image, 0)

    @cached_property
    def fixed_size(self) -> tuple[int, int] | None:
        """Fixed input image size (height, width); None for any size or preprocessed tensors."""
        if self.input != "image":
            return None
        sides = [side for side in self.session.get_inputs()[0].shape[1:3] if isinstance(side, int)]
        return (sides[0], sides[1]) if len(sides) == 2 else None

    def run(self, batch: NDArray[np.uint8] | NDArray[np.float32]) -> ModelOutputs:
        """Return the model's outputs for a batch of `prepare_input`.

        Raises:
            ProviderError: a provider other than the CPU's failed. There is no fallback.
            BundleError: the model cannot be run, or its number of classes differs from the labels.
        """
        feed = {self.session.get_inputs()[0].name: batch}
        names = ["logits", "probabilities"]
        if self.unknown is not None:
            names.append("unknown_score")
        if self.has_activation_maps:
            names.append(ACTIVATION_MAPS)
        try:
            outputs = run_with_timeout(self.session, names, feed)
        except BundleError:
            raise
        except Exception as cause:  # onnxruntime's exceptions share no base class
            raise_provider_failure(self.session, cause)
            message = " ".join(str(cause).split())
            raise BundleError(
                f"The model cannot be run: {message} Export the bundle again."
            ) from cause
        maps = outputs.pop() if self.has_activation_maps else None
        logits, probabilities, *scores = outputs
        shape = (len(batch), len(self.labels))
        if logits.shape != shape or probabilities.shape != shape:
            raise BundleError(
                f"Logits and probabilities must have shape {shape}, "
                f"got {logits.shape} and {probabilities.shape}. Export the bundle again."
            )
        if scores and scores[0].shape != (len(batch),):
            raise BundleError(
                f"unknown_score must have shape {(len(batch),)}, got {scores[0].shape}. "
                "Export the bundle again."
            )
        if maps is not None and (maps.ndim != 4 or maps.shape[:2] != shape or not maps.size):
            raise BundleError(
                f"{ACTIVATION_MAPS} must have shape {(*shape, 'h', 'w')}, got {maps.shape}. "
                "Export the bundle again."
            )
        return ModelOutputs(logits, probabilities, scores[0] if scores else None, maps)

    def classify(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the probabilities [classes] of one decoded RGB image, uint8 [height, width, 3].

        Raises:
            DecodeError: the image does not have the model's fixed size.
            ProviderError, BundleError: see `run`.
        """
        probabilities: NDArray[np.float32] = self.run(self.prepare_input(image)).probabilities[0]
        return probabilities

    def explain(self, image: NDArray[np.uint8], outputs: ModelOutputs | None = None) -> Explanation:
        """Explain the best label of one decoded RGB image, uint8 [height, width, 3].

        Args:
            image: the image.
            outputs: the model's outputs for this image alone; None computes them.

        Raises:
            DecodeError: the image does not have the model's fixed size.
            BundleError: the classifier was not opened with `explain`; or see `run`.
            ProviderError: see `run`.
        """
        outputs = outputs or self.run(self.prepare_input(image))
        if outputs.activation_maps is None:
            raise BundleError("The classifier has no activation maps. Open it with explain=True.")
        maps, probabilities = outputs.activation_maps[0], outputs.probabilities[0]
        best = int(probabilities.argmax())
        return Explanation(
            self.labels[best],
            float(probabilities[best]),
            # Probabilities depend only on the differences between the logits.
            maps[best] - maps.mean(axis=0),
            resize_and_crop(image, self.preprocessing),
            None if outputs.unknown_scores is None else float(outputs.unknown_scores[0]),
        )


def open_classifier(
    bundle: StrPath,
    variant: str | None = None,
    provider: str = "cpu",
    threads: int | None = None,
    explain: bool = False,
) -> Classifier:
    """Open the model of a bundle, of a run directory's bundle, or of an ONNX file from edgetl.

    Args:
        bundle: the bundle, run directory or ONNX file.
        variant: variant of the bundle; None uses the recommended one.
        provider: execution provider (cpu, cuda, tensorrt, ...), without silent fallback.
        threads: intra-op threads; None uses all available cores.
        explain: compute the activation maps that `Classifier.explain` needs. It takes more time.

    Raises:
        BundleError: the bundle or file is missing or altered, there is no such variant, the file
            lacks edgetl's metadata, or it lacks the activation maps for `explain`.
        ProviderError: the provider is unknown, not in this onnxruntime, did not start, or did not
            take all compute nodes.
    """
    path = Path(bundle)
    if path.suffix == ".onnx":
        if not path.is_file():
            raise BundleError(f"ONNX file not found: {path}.")
        session = create_session(path, provider, threads, activation_maps=explain)
        metadata = read_metadata(session)
        if metadata is None:
            raise BundleError(
                f"{path} has no edgetl metadata (labels, preprocessing, input). "
                "Give a bundle, or an ONNX file exported by edgetl."
            )
        return _make_classifier(session, metadata, explain)
    opened = open_bundle(path)
    return open_variant(opened, opened.select_variant(variant), provider, threads, explain)


def open_variant(
    bundle: Bundle,
    bundle_variant: VariantRecord,
    provider: str,
    threads: int | None,
    explain: bool = False,
) -> Classifier:
    """Open a variant of an opened bundle.

    Raises:
        BundleError, ProviderError: see `open_classifier`.
    """
    session = create_session(
        bundle.variant_path(bundle_variant),
        provider,
        threads,
        precision=bundle_variant.precision,
        activation_maps=explain,
    )
    # `variant_path` has checked that the file's metadata match the manifest.
    metadata = read_metadata(session)
    if metadata is None:
        metadata = ModelMetadata(
            bundle.labels, bundle.preprocessing, bundle_variant.input, bundle.run_id
        )
    return _make_classifier(session, metadata, explain)


def _make_classifier(session: Session, metadata: ModelMetadata, explain: bool) -> Classifier:
    if explain and not metadata.activation_maps:
        raise BundleError(
            f"The model has no output {ACTIVATION_MAPS}. Export it again with --explain."
        )
    return Classifier(
        session,
        metadata.labels,
        metadata.preprocessing,
        metadata.input,
        metadata.unknown,
        metadata.prediction_sets,
        explain,
    )


def run_images(classifier: Classifier, images: Iterable[NDArray[np.uint8]]) -> GoldenOutputs:
    """Return the outputs for decoded images, run one by one.

    Raises:
        DecodeError: see `Classifier.prepare_input`.
        ProviderError, BundleError: see `Classifier.run`.
    """
    outputs = [classifier.run(classifier.prepare_input(image)) for image in images]
    scores = [batch.unknown_scores for batch in outputs if batch.unknown_scores is not None]
    return GoldenOutputs.from_numbers(
        np.concatenate([batch.logits for batch in outputs]),
        np.concatenate([batch.probabilities for batch in outputs]),
        np.concatenate(scores) if scores else (),
    )


def open_verified_classifier(
    bundle: StrPath,
    variant: str | None = None,
    provider: str = "cpu",
    threads: int | None = None,
    explain: bool = False,
) -> Classifier:
    """Open a classifier and check this session on the bundle's golden images.

    A single ONNX file is not checked: it has no golden images.

    Raises:
        BundleError: see `open_classifier`; or the outputs do not match the reference.
        ProviderError: see `open_classifier`.
    """
    path = Path(bundle)
    if path.suffix == ".onnx":
        return open_classifier(path, variant, provider, threads, explain)
    opened = open_bundle(path)
    bundle_variant = opened.select_variant(variant)
    golden = opened.load_golden()
    classifier = open_variant(opened, bundle_variant, provider, threads, explain)
    outputs = run_images(classifier, golden.load_images(bundle_variant))
    gate = golden.check(bundle_variant, provider, outputs)
    if not gate.passed:
        raise BundleError(
            f"The outputs of {bundle_variant.name} do not match the reference on this device: "
            f"{gate.reason}. `edgetl verify {path}` checks all variants."
        )
    return classifier
