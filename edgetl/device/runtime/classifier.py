"""Classify uint8 images with the model of a bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl.core.artifacts.bundle import VariantRecord
from edgetl.core.artifacts.confidence import CoverageLevel, UnknownDetector
from edgetl.core.artifacts.model_metadata import ModelMetadata
from edgetl.core.config.export import InputKind
from edgetl.core.config.session_modes import DEFAULT_MODE
from edgetl.core.errors import BundleError, DecodeError
from edgetl.core.paths import StrPath
from edgetl.core.preprocessing import Preprocessing
from edgetl.core.progress import LOGGER
from edgetl.core.registry import check_installed
from edgetl.core.runtimes import ONNXRUNTIME, RUNTIMES, check_runtime
from edgetl.device.hardware.cpu import available_cores
from edgetl.device.runtime.bundle import Bundle, open_bundle
from edgetl.device.runtime.explanation import Explanation
from edgetl.device.runtime.golden import GoldenOutputs, softmax
from edgetl.device.runtime.onnx_file import ACTIVATION_MAPS
from edgetl.device.runtime.preprocessing import preprocess, resize_and_crop
from edgetl.device.runtime.session_choice import SessionChoice, SessionOptions, choose_session
from edgetl.device.runtime.sessions.session import ModelSession, SessionSource, open_session


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
    """Session of a runtime with its labels and preprocessing."""

    session: ModelSession
    labels: tuple[str, ...]
    """Names of the classes, in the order of the logits."""
    preprocessing: Preprocessing
    input: InputKind
    """Whether the session takes images or preprocessed tensors."""
    unknown: UnknownDetector | None = None
    """Detector of unknown images; None if the graph has no output `unknown_score`."""
    prediction_sets: tuple[CoverageLevel, ...] = ()
    has_activation_maps: bool = False
    """Whether the session computes the output `activation_maps`."""
    fixed_size: tuple[int, int] | None = None
    """Fixed input image size (height, width); None for any size or preprocessed tensors."""
    temperature: float = 1.0
    """Divisor of the logits in the softmax, for files that compute only logits."""
    channels_last: bool = False
    """Order in memory of preprocessed tensors."""

    def __repr__(self) -> str:
        return f"Classifier({len(self.labels)} labels, input={self.input!r})"

    def prepare_input(self, image: NDArray[np.uint8]) -> NDArray[np.uint8] | NDArray[np.float32]:
        """Return the model's input for one decoded image [height, width, 3].

        It is the image or the preprocessed tensor, with a batch dimension.

        Raises:
            DecodeError: the image does not have the model's fixed size.
        """
        if self.input != "image":
            return preprocess(image, self.preprocessing, self.channels_last)
        if self.fixed_size is not None and image.shape[:2] != self.fixed_size:
            height, width = self.fixed_size
            raise DecodeError(
                f"The image must have {width} x {height} pixels for this variant, "
                f"got {image.shape[1]} x {image.shape[0]}. "
                "Resize it, or use a variant without a fixed size."
            )
        return np.expand_dims(image, 0)

    def run(self, batch: NDArray[np.uint8] | NDArray[np.float32]) -> ModelOutputs:
        """Return the model's outputs for a batch of `prepare_input`.

        Raises:
            ProviderError: a provider other than the CPU's failed. There is no fallback.
            BundleError: the model cannot be run, or its number of classes differs from the labels.
        """
        names = ["logits"]
        has_probabilities = "probabilities" in self.session.output_names
        if has_probabilities:
            names.append("probabilities")
        if self.unknown is not None:
            names.append("unknown_score")
        if self.has_activation_maps:
            names.append(ACTIVATION_MAPS)
        outputs = self.session.run(names, batch)
        maps = outputs.pop() if self.has_activation_maps else None
        logits = outputs.pop(0)
        if has_probabilities:
            probabilities = outputs.pop(0)
        else:
            probabilities = softmax(logits.astype(np.float64), self.temperature).astype(np.float32)
        scores = outputs
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
    provider: str | None = None,
    threads: int | None = None,
    explain: bool = False,
    runtime: str | None = None,
    use_recommendation: bool = True,
) -> Classifier:
    """Open the model of a bundle, of a run directory's bundle, or of an ONNX file from edgetl.

    Args:
        bundle: the bundle, run directory or ONNX file.
        variant: variant of the bundle; None uses the recommended one.
        provider: execution provider (cpu, cuda, tensorrt, ...), without silent fallback; None is
            the CPU.
        threads: intra-op threads; None uses all available cores.
        explain: compute the activation maps that `Classifier.explain` needs. It takes more time.
        runtime: a name of `edgetl.core.runtimes.RUNTIMES`; None uses the variant's.
        use_recommendation: without variant, provider, threads and runtime, use those that
            `edgetl bench --save-recommendation` saved in the bundle, if they were measured on this
            CPU with this version of the runtime. The log says what was used.

    Raises:
        BundleError: the bundle or file is missing or altered, there is no such variant, the runtime
            cannot run it, the file lacks edgetl's metadata, or it lacks the activation maps for
            `explain`.
        ProviderError: the provider is unknown, not in this onnxruntime, did not start, or did not
            take all compute nodes.
        MissingPackageError: the runtime is not installed.
        ConfigError: the runtime is unknown.
    """
    check_runtime(runtime)
    path = Path(bundle)
    if path.suffix == ".onnx":
        if runtime not in (None, ONNXRUNTIME):
            raise BundleError(
                f"{RUNTIMES[runtime].title} needs a bundle, which has the check of its outputs. "
                f"Give the bundle of {path}, or leave out the runtime."
            )
        if not path.is_file():
            raise BundleError(f"ONNX file not found: {path}.")
        return _open_onnx_file(path, provider or "cpu", threads, explain)
    opened = open_bundle(path)
    options = SessionOptions(variant, provider, threads, runtime, use_recommendation)
    choice = choose_session(opened, options, explain)
    if choice.note:
        LOGGER.info("%s", choice.note)
    return _open_choice(opened, choice, explain)


def _open_choice(bundle: Bundle, choice: SessionChoice, explain: bool) -> Classifier:
    return open_variant(
        bundle,
        choice.variant,
        choice.provider,
        choice.threads,
        explain,
        choice.runtime,
        choice.session_mode,
    )


def open_variant(
    bundle: Bundle,
    bundle_variant: VariantRecord,
    provider: str = "cpu",
    threads: int | None = None,
    explain: bool = False,
    runtime: str | None = None,
    session_mode: str = DEFAULT_MODE,
) -> Classifier:
    """Open a variant of an opened bundle.

    Raises:
        BundleError, ProviderError, MissingPackageError: see `open_classifier`.
    """
    files = bundle.variant_paths(bundle_variant)
    runtime = runtime or bundle_variant.runtime
    if runtime != ONNXRUNTIME:
        if provider != "cpu" or explain:
            raise BundleError(
                f"{RUNTIMES[runtime].title} runs on the CPU and without activation maps. Leave out "
                "--provider and --explain, or --runtime."
            )
        return _open_with_runtime(bundle, bundle_variant, files, threads, runtime)
    # `variant_paths` has checked that the file's metadata match the manifest.
    default = ModelMetadata(
        bundle.labels, bundle.preprocessing, bundle_variant.input, bundle.run_id
    )
    return _open_onnx_file(
        files[0], provider, threads, explain, bundle_variant.precision, default, session_mode
    )


def _open_with_runtime(
    bundle: Bundle,
    variant: VariantRecord,
    files: tuple[Path, ...],
    threads: int | None,
    runtime: str,
) -> Classifier:
    source = SessionSource(
        files, threads or available_cores(), bundle.preprocessing.crop, variant.precision
    )
    return Classifier(
        open_session(runtime, source),
        bundle.labels,
        bundle.preprocessing,
        "tensor",
        variant.detector,
        variant.prediction_sets,
        temperature=variant.temperature,
        channels_last=RUNTIMES[runtime].channels_last,
    )


def _open_onnx_file(
    path: Path,
    provider: str,
    threads: int | None,
    explain: bool,
    precision: str | None = None,
    default_metadata: ModelMetadata | None = None,
    session_mode: str = DEFAULT_MODE,
) -> Classifier:
    check_installed(ONNXRUNTIME)
    # Only here: other runtimes do not need onnxruntime.
    from edgetl.device.runtime.session import create_session, read_metadata
    from edgetl.device.runtime.sessions.onnxruntime_session import OnnxRuntimeSession

    ort_session = create_session(
        path,
        provider,
        threads,
        precision=precision,
        session_mode=session_mode,
        activation_maps=explain,
    )
    metadata = read_metadata(ort_session) or default_metadata
    if metadata is None:
        raise BundleError(
            f"{path} has no edgetl metadata (labels, preprocessing, input). "
            "Give a bundle, or an ONNX file exported by edgetl."
        )
    if explain and not metadata.activation_maps:
        raise BundleError(
            f"The model has no output {ACTIVATION_MAPS}. Export it again with --explain."
        )
    session = OnnxRuntimeSession(ort_session)
    return Classifier(
        session,
        metadata.labels,
        metadata.preprocessing,
        metadata.input,
        metadata.unknown,
        metadata.prediction_sets,
        explain,
        session.fixed_size if metadata.input == "image" else None,
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
    options: SessionOptions | None = None,
    explain: bool = False,
    notify: Callable[[str], None] | None = None,
) -> Classifier:
    """Open a classifier and check this session on the bundle's golden images.

    A single ONNX file is not checked: it has no golden images.

    Args:
        bundle: the bundle, run directory or ONNX file.
        options: the caller's choices; None leaves all to the bundle.
        explain: compute the activation maps that `Classifier.explain` needs.
        notify: called with the recommendation that was used, or why it was not; None logs it.

    Raises:
        BundleError: see `open_classifier`; or the outputs do not match the reference.
        ProviderError: see `open_classifier`.
    """
    options = options or SessionOptions()
    path = Path(bundle)
    if path.suffix == ".onnx":
        provider, threads, runtime = options.provider, options.threads, options.runtime
        return open_classifier(path, options.variant, provider, threads, explain, runtime)
    check_runtime(options.runtime)
    opened = open_bundle(path)
    choice = choose_session(opened, options, explain)
    golden = opened.load_golden()
    classifier = _open_choice(opened, choice, explain)
    outputs = run_images(classifier, golden.load_images(choice.variant))
    gate = golden.check(choice.variant, choice.provider, outputs, choice.relative_tolerance)
    if choice.note:
        (notify or LOGGER.info)(choice.note)
    if not gate.passed:
        raise BundleError(
            f"The outputs of {choice.variant.name} do not match the reference on this device: "
            f"{gate.reason}. `edgetl verify {path}` checks all variants."
        )
    return classifier
