"""A bundle's reference images, and the PyTorch model's logits for them."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl.core.errors import BundleError
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import resize_to
from edgetl.device.runtime.providers import CUDA_PROVIDERS

if TYPE_CHECKING:
    from edgetl.device.runtime.bundle import Variant


TF32_RELATIVE_TOLERANCE = 0.01
"""Of the largest |logit|: what TF32 may move a logit by."""


def gate_tolerance(
    reference: NDArray[np.float32], provider: str, *tolerances: float | None, relative: float = 0.0
) -> float:
    """Return the largest |logit difference| that still counts as PyTorch's answer: the widest of the bounds that apply.

    On NVIDIA GPUs onnxruntime, TensorRT and PyTorch compute float32 convolutions and matrix products in TF32 by default, which
    reads 10 bits of a factor's mantissa in place of 23 (NVIDIA, "TensorFloat-32 in the A100 GPU"; PyTorch's notes on numerical
    accuracy): each factor is off by up to 2^-11 = 0.05%, and layers add up. Such an error grows with the logits, so the bound on
    these providers is at least 1% of the reference's largest |logit|. A mistake in preprocessing or weights moves logits by
    multiples of that. fp16 and int8 variants have tolerances of their own, found when they were exported; they are not widened
    further than this.

    Args:
        reference: PyTorch's logits [n, classes].
        provider: where the answers come from, by a provider's short name.
        tolerances: absolute bounds; None is none.
        relative: a bound as a share of the largest |logit|.
    """
    share = max(relative, TF32_RELATIVE_TOLERANCE if provider in CUDA_PROVIDERS else 0.0)
    largest = float(np.abs(reference).max(initial=0.0))
    return max(share * largest, *(bound for bound in tolerances if bound is not None))


def check_logits(
    logits: NDArray[np.float64], reference: NDArray[np.float32], tolerance: float
) -> dict[str, Any]:
    """The gate's verdict on logits [n, classes] against the reference's.

    Top-1 agrees where the runtime's best class is the reference's best, or within the tolerance of it: a tie is no mistake.
    """
    verdict: dict[str, Any] = {
        "checked": True,
        "passed": False,
        "images": len(reference),
        "tolerance": tolerance,
    }
    if logits.shape != reference.shape:
        return {**verdict, "reason": f"logits of shape {logits.shape}, not {reference.shape}"}
    if not np.isfinite(logits).all():
        return {
            **verdict,
            "max_logit_difference": None,
            "top1_agreement": None,
            "reason": "the answers are not finite numbers",
        }
    difference = float(np.abs(logits - reference).max())
    chosen = np.take_along_axis(reference, logits.argmax(1)[:, None], 1)[:, 0]
    agreement = int((chosen >= reference.max(1) - tolerance).sum())
    found = {"max_logit_difference": difference, "top1_agreement": agreement}
    if difference > tolerance:
        return {
            **verdict,
            **found,
            "reason": f"logits differ by {difference:.3g}, tolerance {tolerance:g}",
        }
    if agreement < len(reference):
        return {
            **verdict,
            **found,
            "reason": f"top-1 agrees on {agreement} of {len(reference)} images",
        }
    return {**verdict, **found, "passed": True}


_MAX_LABEL_LENGTH = 4096
_MAX_HEADER_BYTES = 65536
VARIANT_TOLERANCE_FACTOR = 4.0
"""Times the largest reference logit that a smaller variant's tolerance may be: 1.25 times its largest measured difference, and answers of
the reference's size with the opposite sign differ by twice the largest."""
_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True)
class GoldenSet:
    """Reference images with the logits that the PyTorch model gives for them."""

    files: list[Path]
    logits: NDArray[np.float32]
    """[n, classes], in the order of `files`."""
    tolerance: float
    """Largest |logit difference| that still counts as the same answer."""
    fixed_size_logits: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """The same for the images resized to the size of a variant of fixed size, by the variant's name."""

    def load_images(self, variant: Variant | None = None) -> list[NDArray[np.uint8]]:
        """The files decoded, and resized for a variant of fixed size: uint8 [height, width, 3] each."""
        size = None if variant is None else variant.size
        return [resize_to(load_image(path), size) for path in self.files]

    def logits_for(self, variant: Variant) -> NDArray[np.float32]:
        """The PyTorch model's logits [n, classes] for what `images` gives a variant."""
        return self.logits if variant.size is None else self.fixed_size_logits[variant.name]


class GoldenArchive:
    """golden.npz, every array's type and shape checked before it is read: a small archive can claim any number of bytes."""

    def __init__(self, path: Path, images: int, labels: Sequence[str]) -> None:
        """Args:
            path: golden.npz.
            images: how many reference images there are.
            labels: the bundle's, in the order of the logits.

        Raises:
            BundleError: it is no archive, or was written for other labels.
        """
        self._path, self._image_count, self._labels = path, images, labels
        try:
            self._archive = zipfile.ZipFile(path)
        except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as cause:
            raise self._broken_error(f"cannot be read ({cause})") from cause
        # Bundles of before have no labels there.
        if "labels.npy" in self._archive.namelist():
            stored = self._read_array("labels", (len(labels),), "U")
            if [str(label) for label in stored] != list(labels):
                raise BundleError(
                    f"{path} was written for other labels, or in another order, than bundle.json names. "
                    "One of both was changed: copy the bundle again, or export it again."
                )

    def __enter__(self) -> GoldenArchive:
        """The archive is closed at the block's end."""
        return self

    def __exit__(self, *error: object) -> None:
        self._archive.close()

    def read_logits(self, name: str = "logits") -> NDArray[np.float32]:
        """The array `name` [images, classes].

        Raises:
            BundleError: it is missing, of another type or shape, or not finite.
        """
        logits: NDArray[np.float32] = self._read_array(
            name, (self._image_count, len(self._labels)), "f"
        ).astype(np.float32)
        if not np.isfinite(logits).all():
            raise self._broken_error(f"holds {name} that are not finite numbers")
        return logits

    def _read_array(self, name: str, shape: tuple[int, ...], kind: str) -> NDArray[Any]:
        if f"{name}.npy" not in self._archive.namelist():
            raise self._broken_error(f"has no array {name!r}")
        try:
            with self._archive.open(f"{name}.npy") as stream:
                return self._parse_array(stream, name, shape, kind)
        except BundleError:
            raise
        except Exception as cause:  # zipfile, zlib and numpy raise many kinds on broken archives
            raise self._broken_error(f"has a broken array {name!r} ({cause})") from cause

    def _parse_array(
        self, stream: IO[bytes], name: str, shape: tuple[int, ...], kind: str
    ) -> NDArray[Any]:
        read_header = _HEADER_READERS.get(np.lib.format.read_magic(stream))
        if read_header is None:
            raise self._broken_error(f"has an array {name!r} of an unknown version")
        stored, by_columns, dtype = read_header(stream, max_header_size=_MAX_HEADER_BYTES)
        largest = 8 if kind == "f" else 4 * _MAX_LABEL_LENGTH
        if dtype.kind != kind or dtype.itemsize > largest:
            raise self._broken_error(f"holds {name} of type {dtype}")
        if stored != shape:
            raise self._broken_error(f"holds {name} of shape {stored}, not {shape}")
        count = math.prod(shape)
        content = stream.read(count * dtype.itemsize)
        if len(content) != count * dtype.itemsize:
            raise self._broken_error(f"is cut short within {name}")
        return np.frombuffer(content, dtype).reshape(shape, order="F" if by_columns else "C")

    def _broken_error(self, what: str) -> BundleError:
        return BundleError(f"{self._path} {what}. Copy the bundle again, or export it again.")


def check_tolerance(
    path: Path, tolerance: float | None, logits: NDArray[np.float32], times: float = 1.0
) -> None:
    """Refuse a tolerance that would let wrong answers pass.

    Args:
        path: the file that it stands in.
        tolerance: largest |logit difference| that counts as the same answer; None is none.
        logits: the reference's.
        times: the largest reference logit may be exceeded so many times.

    Raises:
        BundleError: it is not above 0, or too large.
    """
    largest = times * max(1.0, float(np.abs(logits).max(initial=0.0)))
    if tolerance is not None and not 0 < tolerance <= largest:
        raise BundleError(
            f"{path} accepts logit differences up to {tolerance:g}, which is not above 0 and at most {largest:.3g}: with reference logits "
            "of this size it would prove nothing. Copy the bundle again, or export it with a smaller --path-tolerance."
        )
