"""A bundle's golden images, and the PyTorch model's logits for them."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl.core.artifacts.gate import GateResult
from edgetl.core.errors import BundleError
from edgetl.core.runtimes import ONNXRUNTIME
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import resize_to
from edgetl.device.runtime.providers import CUDA_PROVIDERS

if TYPE_CHECKING:
    from edgetl.core.artifacts.bundle import VariantRecord


TF32_RELATIVE_TOLERANCE = 0.01
"""Allowed error of a logit from TF32, relative to the largest |logit|."""


def gate_tolerance(
    reference: NDArray[np.float32], provider: str, *tolerances: float | None, relative: float = 0.0
) -> float:
    """Return the largest accepted |logit difference| to PyTorch: the widest applicable tolerance.

    On NVIDIA GPUs onnxruntime, TensorRT and PyTorch compute float32 convolutions and matrix
    products in TF32 by default, which uses 10 bits of a factor's mantissa instead of 23 (NVIDIA,
    "TensorFloat-32 in the A100 GPU"; PyTorch's notes on numerical accuracy): each factor is off by
    up to 2^-11 = 0.05%, and the errors of the layers add up. The error grows with the logits, so
    the tolerance on these providers is at least 1% of the reference's largest |logit|. Errors in
    preprocessing or weights change logits by multiples of that. fp16 and int8 variants have their
    own tolerances, measured at export, which are not widened beyond this.

    Args:
        reference: PyTorch's logits [n, classes].
        provider: short name of the execution provider.
        tolerances: absolute tolerances; None is ignored.
        relative: a tolerance as a share of the largest |logit|.
    """
    if provider in CUDA_PROVIDERS:
        relative = max(relative, TF32_RELATIVE_TOLERANCE)
    largest_logit = float(np.abs(reference).max(initial=0.0))
    absolute = (tolerance for tolerance in tolerances if tolerance is not None)
    return max(relative * largest_logit, *absolute)


def check_logits(
    logits: NDArray[np.float64], reference: NDArray[np.float32], tolerance: float
) -> GateResult:
    """Compare logits [n, classes] with the reference's.

    Top-1 agrees if the reference's logit of the runtime's best class is within the tolerance of its
    own best logit, so that ties do not count as errors.
    """
    result = GateResult(checked=True, passed=False, images=len(reference), tolerance=tolerance)
    if logits.shape != reference.shape:
        reason = f"the logits must have shape {reference.shape}, got {logits.shape}"
        return replace(result, reason=reason)
    if not np.isfinite(logits).all():
        return replace(result, reason="the logits are not finite")
    difference = float(np.abs(logits - reference).max())
    reference_of_top1 = np.take_along_axis(reference, logits.argmax(1)[:, None], 1)[:, 0]
    agreement = int((reference_of_top1 >= reference.max(1) - tolerance).sum())
    result = replace(result, max_logit_difference=difference, top1_agreement=agreement)
    if difference > tolerance:
        reason = f"logits differ by {difference:.3g}, tolerance {tolerance:g}"
        return replace(result, reason=reason)
    if agreement < len(reference):
        reason = f"top-1 agrees on {agreement} of {len(reference)} images"
        return replace(result, reason=reason)
    return replace(result, passed=True)


_SOFTMAX_TOLERANCE = 1e-5
"""Accepted error of a probability on the CPU, if the softmax is computed in float32."""
_COARSE_SOFTMAX_TOLERANCE = 0.01
"""Accepted error of a probability that may be computed in half precision."""
_UNKNOWN_TOLERANCE = 0.05
"""Accepted error of an unknown score of fp32 on the CPU; 0 is the median image, 1 the threshold.

Kernels differ by 4e-6; another JPEG decoder differs by a gray level, which changes logits by 0.01.
"""
_COARSE_UNKNOWN_TOLERANCE = 0.25
"""Accepted error of an unknown score of smaller variants and on other providers.

Scores of an int8 MobileNetV2 differed by up to 0.05 between kernels for int8 and for float32.
"""


@dataclass(frozen=True)
class GoldenOutputs:
    """Outputs of a runtime for the golden images."""

    logits: NDArray[np.float64]
    """[n, classes]."""
    probabilities: NDArray[np.float64] | None = None
    """[n, classes]; None if the runtime computes only logits."""
    unknown_scores: NDArray[np.float64] | None = None
    """[n]; None if the runtime computes none."""

    @classmethod
    def from_numbers(
        cls, logits: object, probabilities: object = (), unknown_scores: object = ()
    ) -> GoldenOutputs:
        """Convert nested lists or arrays; empty ones stand for outputs that are not computed."""
        logit_array, probability_array, score_array = (
            np.asarray(numbers, np.float64) for numbers in (logits, probabilities, unknown_scores)
        )
        return cls(
            logit_array,
            probability_array if probability_array.size else None,
            score_array if score_array.size else None,
        )


@dataclass(frozen=True)
class ConfidenceReference:
    """Reference of a variant's probabilities and unknown scores for the golden images."""

    temperature: float
    """Divisor of the logits in the softmax."""
    softmax_tolerance: float
    """Largest accepted error of a probability."""
    detects_unknown: bool
    """Whether the graph has the output `unknown_score`."""
    unknown_scores: NDArray[np.float32] | None
    """Scores [n] on the exporting machine; None if not recorded."""
    unknown_tolerance: float
    """Largest accepted error of a score; of scores beyond 1, a share of the score."""


def check_confidence(
    gate: GateResult, outputs: GoldenOutputs, reference: ConfidenceReference
) -> GateResult:
    """Add the check of probabilities and unknown scores to a gate that the logits passed.

    Args:
        gate: result of `check_logits`; returned unchanged if it did not pass.
        outputs: outputs of the runtime; those that it does not compute are not checked.
        reference: what they are compared with.
    """
    if not gate.passed or outputs.probabilities is None:
        return gate
    expected = softmax(outputs.logits, reference.temperature)
    if (
        outputs.probabilities.shape != expected.shape
        or not np.isfinite(outputs.probabilities).all()
    ):
        reason = f"the probabilities must be finite and of shape {expected.shape}"
        return replace(gate, passed=False, reason=reason)
    error = float(np.abs(outputs.probabilities - expected).max())
    gate = replace(gate, max_probability_difference=error)
    if error > reference.softmax_tolerance:
        reason = (
            f"probabilities differ by {error:.3g} from the softmax of the logits with temperature "
            f"{reference.temperature:g}, tolerance {reference.softmax_tolerance:g}"
        )
        return replace(gate, passed=False, reason=reason)
    if not reference.detects_unknown:
        return gate
    if outputs.unknown_scores is None:
        return replace(gate, passed=False, reason="the model has no output unknown_score")
    return _check_unknown_scores(gate, outputs.unknown_scores, reference)


def _check_unknown_scores(
    gate: GateResult, scores: NDArray[np.float64], reference: ConfidenceReference
) -> GateResult:
    if scores.shape != (gate.images,) or not np.isfinite(scores).all():
        reason = f"the unknown scores must be finite and of shape {(gate.images,)}"
        return replace(gate, passed=False, reason=reason)
    if reference.unknown_scores is None:
        return gate
    errors = np.abs(scores - reference.unknown_scores)
    gate = replace(gate, max_unknown_score_difference=float(errors.max()))
    excess = errors - reference.unknown_tolerance * np.maximum(1, np.abs(reference.unknown_scores))
    worst = int(excess.argmax())
    if excess[worst] > 0:
        reason = (
            f"the unknown score of golden image {worst} is {scores[worst]:.3g}, but was "
            f"{reference.unknown_scores[worst]:.3g} at the export"
        )
        return replace(gate, passed=False, reason=reason)
    return gate


def softmax(logits: NDArray[np.float64], temperature: float = 1.0) -> NDArray[np.float64]:
    """Return the softmax of logits [n, classes] divided by a temperature."""
    with np.errstate(over="ignore"):  # a tiny temperature
        exponentials = np.exp((logits - logits.max(1, keepdims=True)) / temperature)
    shares: NDArray[np.float64] = exponentials / exponentials.sum(1, keepdims=True)
    return shares


_MAX_LABEL_LENGTH = 4096
_MAX_HEADER_BYTES = 65536
VARIANT_TOLERANCE_FACTOR = 4.0
"""Largest tolerance of a smaller variant, as a multiple of the largest reference logit.

A tolerance is 1.25 times the largest measured difference, and logits of the reference's size with
the opposite sign differ by twice the largest.
"""
_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True)
class GoldenSet:
    """Golden images with the PyTorch model's logits."""

    files: list[Path]
    logits: NDArray[np.float32]
    """[n, classes], in the order of `files`."""
    tolerance: float
    """Largest accepted |logit difference|."""
    fixed_size_logits: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """Logits for the images resized to the size of a variant of fixed size, by variant name."""
    unknown_scores: dict[str, NDArray[np.float32] | None] = field(default_factory=dict)
    """Unknown scores [n] on the exporting machine, by variant name; None if not recorded."""

    def load_images(self, variant: VariantRecord | None = None) -> list[NDArray[np.uint8]]:
        """Decode the files, resized for a variant of fixed size: uint8 [height, width, 3] each."""
        size = None if variant is None else variant.size
        return [resize_to(load_image(path), size) for path in self.files]

    def logits_for(self, variant: VariantRecord) -> NDArray[np.float32]:
        """Return the PyTorch model's logits [n, classes] for `load_images(variant)`."""
        if variant.size is None:
            return self.logits
        return self.fixed_size_logits[variant.name]

    def check(
        self,
        variant: VariantRecord,
        provider: str,
        outputs: GoldenOutputs,
        relative_tolerance: float = 0.0,
    ) -> GateResult:
        """Compare a variant's outputs on a provider with the references.

        Args:
            variant: the variant.
            provider: short name of the execution provider.
            outputs: the outputs for the golden images.
            relative_tolerance: tolerance of the session mode, as a share of the largest |logit|.
        """
        reference = self.logits_for(variant)
        tolerance = gate_tolerance(
            reference, provider, self.tolerance, variant.tolerance, relative=relative_tolerance
        )
        gate = check_logits(outputs.logits, reference, tolerance)
        is_exact = provider == "cpu" and variant.precision == "fp32" and not relative_tolerance
        return check_confidence(gate, outputs, self._confidence_for(variant, provider, is_exact))

    def _confidence_for(
        self, variant: VariantRecord, provider: str, is_exact: bool
    ) -> ConfidenceReference:
        return ConfidenceReference(
            temperature=variant.temperature,
            softmax_tolerance=softmax_tolerance(provider, variant),
            detects_unknown=variant.unknown is not None,
            unknown_scores=self.unknown_scores.get(variant.name),
            unknown_tolerance=_UNKNOWN_TOLERANCE if is_exact else _COARSE_UNKNOWN_TOLERANCE,
        )


def softmax_tolerance(provider: str, variant: VariantRecord) -> float:
    """Return the largest accepted error of a probability.

    On the CPU, ONNX Runtime computes the softmax of every variant in float32. Other providers, and
    other runtimes in a smaller float type, may not.
    """
    is_float32 = variant.runtime == ONNXRUNTIME or variant.precision in ("fp32", "int8")
    if provider == "cpu" and is_float32:
        return _SOFTMAX_TOLERANCE
    return _COARSE_SOFTMAX_TOLERANCE


class GoldenArchive:
    """Reader of golden.npz that checks each array's type and shape before reading it.

    Otherwise a small archive could claim any number of bytes.
    """

    def __init__(self, path: Path, image_count: int, labels: Sequence[str]) -> None:
        """Open the archive.

        Args:
            path: golden.npz.
            image_count: number of golden images.
            labels: the bundle's labels in the order of the logits.

        Raises:
            BundleError: the file is not an archive, or its labels do not match.
        """
        self._path = path
        self._image_count = image_count
        self._labels = labels
        try:
            self._archive = zipfile.ZipFile(path)
        except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as cause:
            raise self._broken_error(f"cannot be read ({cause})") from cause
        # Older bundles have no labels in the archive.
        if "labels.npy" in self._archive.namelist():
            archive_labels = self._read_array("labels", (len(labels),), "U")
            if [str(label) for label in archive_labels] != list(labels):
                raise BundleError(
                    f"The labels in {path}, or their order, do not match bundle.json: one of the "
                    "files was changed. Copy or export the bundle again."
                )

    def __enter__(self) -> GoldenArchive:
        """Return the reader; the archive is closed at the end of the block."""
        return self

    def __exit__(self, *error: object) -> None:
        self._archive.close()

    def read_logits(self, name: str = "logits") -> NDArray[np.float32]:
        """Read the array `name` [images, classes].

        Raises:
            BundleError: it is missing, has another type or shape, or is not finite.
        """
        logits: NDArray[np.float32] = self._read_array(
            name, (self._image_count, len(self._labels)), "f"
        ).astype(np.float32)
        if not np.isfinite(logits).all():
            raise self._broken_error(f"contains {name} that are not finite")
        return logits

    def read_unknown_scores(self, variant: str) -> NDArray[np.float32] | None:
        """Read a variant's unknown scores [images]; None if there are none.

        Raises:
            BundleError: they have another type or shape, or are not finite.
        """
        name = f"unknown_score_{variant}"
        if f"{name}.npy" not in self._archive.namelist():
            return None
        scores: NDArray[np.float32] = self._read_array(name, (self._image_count,), "f").astype(
            np.float32
        )
        if not np.isfinite(scores).all():
            raise self._broken_error(f"contains {name} that are not finite")
        return scores

    def _read_array(self, name: str, shape: tuple[int, ...], kind: str) -> NDArray[Any]:
        if f"{name}.npy" not in self._archive.namelist():
            raise self._broken_error(f"has no array {name!r}")
        try:
            with self._archive.open(f"{name}.npy") as stream:
                return self._parse_array(stream, name, shape, kind)
        except BundleError:
            raise
        except Exception as cause:  # zipfile, zlib and numpy raise many types on broken archives
            raise self._broken_error(f"has a broken array {name!r} ({cause})") from cause

    def _parse_array(
        self, stream: IO[bytes], name: str, shape: tuple[int, ...], kind: str
    ) -> NDArray[Any]:
        read_header = _HEADER_READERS.get(np.lib.format.read_magic(stream))
        if read_header is None:
            raise self._broken_error(f"has an array {name!r} of an unknown version")
        array_shape, by_columns, dtype = read_header(stream, max_header_size=_MAX_HEADER_BYTES)
        max_item_bytes = 8 if kind == "f" else 4 * _MAX_LABEL_LENGTH
        if dtype.kind != kind or dtype.itemsize > max_item_bytes:
            raise self._broken_error(f"contains {name} of type {dtype}")
        if array_shape != shape:
            raise self._broken_error(f"contains {name} of shape {array_shape}, expected {shape}")
        size_bytes = math.prod(shape) * dtype.itemsize
        content = stream.read(size_bytes)
        if len(content) != size_bytes:
            raise self._broken_error(f"is truncated in {name}")
        return np.frombuffer(content, dtype).reshape(shape, order="F" if by_columns else "C")

    def _broken_error(self, problem: str) -> BundleError:
        return BundleError(f"{self._path} {problem}. Copy or export the bundle again.")


def check_tolerance(
    path: Path, tolerance: float | None, logits: NDArray[np.float32], factor: float = 1.0
) -> None:
    """Check that a tolerance is small enough to detect wrong logits.

    Args:
        path: the file that contains it.
        tolerance: largest accepted |logit difference|; None is not checked.
        logits: the reference logits.
        factor: largest tolerance as a multiple of the largest reference logit.

    Raises:
        BundleError: the tolerance is not above 0, or too large.
    """
    largest = factor * max(1.0, float(np.abs(logits).max(initial=0.0)))
    if tolerance is not None and not 0 < tolerance <= largest:
        raise BundleError(
            f"The tolerance in {path} must be above 0 and at most {largest:.3g} for reference "
            f"logits of this size, got {tolerance:g}: it would accept wrong logits. "
            "Copy the bundle again, or export it with a smaller --path-tolerance."
        )
