"""Parity proof: the ONNX file and the PyTorch model give the same logits on real images.

The proof has two parts:

- network: identical tensors through PyTorch and through the network extracted from the shipped
  file, in batches of 1, 2 and 5;
- path: decoded photos through the complete shipped file, compared with Pillow and PyTorch, in the
  original and in several other sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from edgetl.core.artifacts.bundle import ImageSource, NetworkParity, ParityRecord, PathParity
from edgetl.core.config.export import ExportConfig
from edgetl.core.errors import ParityError
from edgetl.core.preprocessing import Preprocessing
from edgetl.core.progress import ProgressCallback, log_progress
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import normalize, resize_and_crop, resize_to
from edgetl.device.runtime.session import create_session
from edgetl.export.graph.assemble import extract_network, with_outputs
from edgetl.export.graph.preprocessing import CROPPED_IMAGE, IMAGE, PIXELS
from edgetl.export.graph.torch_export import LOGITS, NetworkGraph
from edgetl.export.parity.diagnosis import (
    PIXEL_TOLERANCE,
    diagnose_input,
    diagnose_logits,
    diagnose_pixels,
    diagnose_training_mode,
)
from edgetl.export.parity.divergence import describe_first_divergence
from edgetl.export.parity.metrics import CROSS_DEVICE_MARGIN

Logits = NDArray[np.float32]
BATCH_SIZES = (1, 2, 5)
EXTRA_IMAGE_SIZES = ((97, 131), (333, 517), (640, 480), (1200, 900))
"""Additional image sizes (height, width) for the path part: small and large, odd and even."""
RELATIVE_TOLERANCE = 0.01
"""Share of the largest |logit| added to the tolerance of the path part."""

TIE_TOLERANCE = 0.01
"""Largest logit difference of a tie.

The two probabilities then differ by at most 1% of their value, so that one grey level can change the
label. Among some hundred photos of a hard data set there is often such an image.
"""


@dataclass(frozen=True)
class Parity:
    """A successful proof."""

    record: ParityRecord
    pytorch_logits: Logits
    """Logits [images, classes], in the order of the images."""
    onnx_logits: Logits
    """Logits [images, classes] of the complete file on the decoded photos."""


@dataclass
class _Differences:
    """Largest differences observed so far."""

    network: float = 0.0
    end_to_end: float = 0.0
    grey_levels: int = 0
    ties: int = 0
    sizes: int = 0


class ParityProof:
    """Parity proof of one model; `prove` raises at the first difference beyond the tolerance."""

    def __init__(
        self,
        network: nn.Module,
        graph: NetworkGraph,
        model: onnx.ModelProto,
        preprocessing: Preprocessing,
        config: ExportConfig,
        kind: ImageSource,
        size: tuple[int, int] | None = None,
    ) -> None:
        """Open sessions for the shipped file and for the network inside it.

        Args:
            network: the PyTorch network, in eval mode.
            graph: its export, for the names of the modules' outputs.
            model: the shipped file, as read back from disk.
            preprocessing: the evaluation preprocessing.
            config: tolerances and the kind of input.
            kind: source of the images.
            size: (height, width) of a file with a fixed image size; the proof images are resized
                to it first.

        Raises:
            ParityError: the PyTorch network is not in eval mode.
        """
        problem = diagnose_training_mode(network)
        if problem:
            raise ParityError(f"Parity cannot be proven: {problem} No bundle was written.")
        self._network = network
        self._graph = graph
        self._preprocessing = preprocessing
        self._config = config
        self._model = model
        self._size = size
        self._has_image_input = config.input == "image"
        self._onnx_network = extract_network(model)
        self._network_session = create_session(
            self._onnx_network.SerializeToString(), spinning=False
        )
        if self._has_image_input:
            model = with_outputs(model, [CROPPED_IMAGE, PIXELS])
        self._end_to_end_session = create_session(model.SerializeToString(), spinning=False)
        self._kind = kind
        self._images = 0
        self._largest = _Differences()

    def prove(
        self,
        images: Sequence[Path],
        step: str = "Proving",
        progress: ProgressCallback = log_progress,
    ) -> Parity:
        """Run both parts on `images`.

        Args:
            images: files of the proof images.
            step: name of the proof, for `progress`.
            progress: called after each batch.

        Raises:
            ParityError: a difference exceeds its tolerance; the message names the part, the image
                and the first module that differs.
            DecodeError: an image cannot be read.
        """
        pytorch_logits: list[Logits] = []
        onnx_logits: list[Logits] = []
        for batch in iterate_batches(images):
            decoded = [resize_to(load_image(path), self._size) for path in batch]
            crops = np.stack([resize_and_crop(image, self._preprocessing) for image in decoded])
            reference = self._check_network(crops, batch)
            pytorch_logits.append(reference)
            for index, image in enumerate(decoded):
                row = slice(index, index + 1)
                onnx_logits.append(
                    self._check_end_to_end(image[None], crops[row], reference[row], batch[row])
                )
            self._images += len(batch)
            progress(step, self._images, len(images))
        if self._size is None:
            self._check_other_sizes(images)
        return Parity(
            self._make_record(), np.concatenate(pytorch_logits), np.concatenate(onnx_logits)
        )

    def _make_record(self) -> ParityRecord:
        largest, config = self._largest, self._config
        network = NetworkParity(
            self._images, self._kind, largest.network, config.network_tolerance, BATCH_SIZES
        )
        path = PathParity(
            images=self._images,
            kind=self._kind,
            max_abs_diff=largest.end_to_end,
            # Other devices round differently, so leave a margin.
            tolerance=max(config.path_tolerance, CROSS_DEVICE_MARGIN * largest.end_to_end),
            # A label that differs by more than a tie ends the proof.
            top1_agreement=1.0,
            batches=BATCH_SIZES,
            sizes=largest.sizes,
            max_grey_levels=largest.grey_levels if self._has_image_input else None,
            ties=largest.ties,
        )
        return ParityRecord(path, network)

    def _check_network(self, crops: NDArray[np.uint8], files: Sequence[Path]) -> Logits:
        pixels = normalize(crops, self._preprocessing)
        with torch.inference_mode():
            reference: Logits = self._network(torch.from_numpy(pixels)).numpy()
        logits: Logits = self._network_session.run([LOGITS], {PIXELS: pixels})[0]
        difference = _difference(reference, logits)
        tolerance = self._config.network_tolerance
        self._largest.network = max(self._largest.network, difference)
        if not difference <= tolerance:  # also true for NaN
            diagnosis = diagnose_logits(reference, logits, tolerance)
            if not diagnosis:
                divergence = describe_first_divergence(
                    self._network, self._graph, self._onnx_network, pixels, tolerance
                )
                diagnosis = f"{divergence} "
            raise ParityError(
                f"Parity failed in the network part (identical tensors): {_describe(reference, logits, files)} "
                f"Tolerance {tolerance:g}. {diagnosis}"
                "No bundle was written. Try another {opset} or version of torch; "
                "{network_tolerance} accepts the difference.",
                ExportConfig,
            )
        return reference

    def _check_end_to_end(
        self,
        images: NDArray[np.uint8],
        crops: NDArray[np.uint8],
        reference: Logits,
        files: Sequence[Path],
    ) -> Logits:
        if self._has_image_input:
            logits, planes, inputs = self._end_to_end_session.run(
                [LOGITS, CROPPED_IMAGE, PIXELS], {IMAGE: images}
            )
            cropped = planes.transpose(0, 2, 3, 1).astype(np.uint8)
            self._compare_pixels(cropped, crops, images.shape, files)
            self._compare_inputs(inputs, cropped, files)
        else:
            (logits,) = self._end_to_end_session.run(
                [LOGITS], {PIXELS: normalize(crops, self._preprocessing)}
            )
        difference = _difference(reference, logits)
        self._largest.end_to_end = max(self._largest.end_to_end, difference)
        predicted_logit = np.take_along_axis(reference, logits.argmax(1)[:, None], 1)[:, 0]
        gap = reference.max(1) - predicted_logit
        labels_agree = bool((gap <= TIE_TOLERANCE).all())
        self._largest.ties += int(((gap > 0) & (gap <= TIE_TOLERANCE)).sum())
        # One grey level changes logits of 20 by more than logits of 2; see docs/decisions/006.
        tolerance = self._config.path_tolerance
        tolerance += RELATIVE_TOLERANCE * float(np.abs(reference).max())
        if not difference <= tolerance or not labels_agree:
            raise ParityError(
                f"Parity failed in the path part (decoded photo {images.shape[2]} x {images.shape[1]} px to logits): "
                f"{_describe(reference, logits, files)} Tolerance {tolerance:.3g}. No bundle was written. "
                f"{self._end_to_end_advice(reference, logits, files, difference <= tolerance)}",
                ExportConfig,
            )
        return np.asarray(logits)

    def _end_to_end_advice(
        self, reference: Logits, logits: Logits, files: Sequence[Path], within_tolerance: bool
    ) -> str:
        if within_tolerance:
            image = int((reference.argmax(1) != logits.argmax(1)).argmax())
            first, second = (float(value) for value in sorted(reference[image])[:-3:-1])
            return (
                f"The difference is small, but the top-1 label of {files[image]} differs: PyTorch's two best logits "
                f"are {first:.5g} and {second:.5g}. Train further, or remove this image from the validation images."
            )
        if self._has_image_input:
            return (
                "The network part and the pixels agree, so the model amplifies differences of one grey level. "
                "{path_tolerance} accepts the difference; {input} tensor leaves preprocessing out of the file."
            )
        return "{path_tolerance} accepts the difference."

    def _compare_pixels(
        self,
        cropped: NDArray[np.uint8],
        crops: NDArray[np.uint8],
        shape: tuple[int, ...],
        files: Sequence[Path],
    ) -> None:
        levels = np.abs(cropped.astype(np.int16) - crops.astype(np.int16))
        worst = int(levels.max())
        self._largest.grey_levels = max(self._largest.grey_levels, worst)
        if worst > PIXEL_TOLERANCE:
            diagnosis = diagnose_pixels(cropped, crops, self._model)
            if not diagnosis:
                version = onnxruntime.__version__
                diagnosis = f"onnxruntime {version} computes Resize differently on this machine. "
            image, row, column, channel = (
                int(index) for index in np.unravel_index(int(levels.argmax()), levels.shape)
            )
            raise ParityError(
                f"Parity failed in the path part (pixels): {files[image]} ({shape[2]} x {shape[1]} px), resized in the "
                f"graph, differs from Pillow by {worst} grey levels at row {row}, column {column}, "
                f"channel {'RGB'[channel]}; {PIXEL_TOLERANCE} are allowed. {diagnosis}No bundle was written. "
                "{input} tensor leaves preprocessing out of the file.",
                ExportConfig,
            )

    def _compare_inputs(
        self, inputs: NDArray[np.float32], crops: NDArray[np.uint8], files: Sequence[Path]
    ) -> None:
        expected = normalize(crops, self._preprocessing)
        diagnosis = diagnose_input(inputs, expected, crops, self._preprocessing)
        if diagnosis:
            raise ParityError(
                f"Parity failed in the path part (normalization) on {files[0]}. {diagnosis}No bundle was written."
            )

    def _check_other_sizes(self, files: Sequence[Path]) -> None:
        """Check the photos resized to other sizes, in batches of one size as in a video stream."""
        resize = self._preprocessing.resize
        for index, (height, width) in enumerate(((resize, resize), *EXTRA_IMAGE_SIZES)):
            count = BATCH_SIZES[index % len(BATCH_SIZES)]
            batch = [files[(index + step) % len(files)] for step in range(count)]
            images = np.stack(
                [
                    np.asarray(Image.fromarray(load_image(path)).resize((width, height)))
                    for path in batch
                ]
            )
            crops = np.stack([resize_and_crop(image, self._preprocessing) for image in images])
            reference = self._check_network(crops, batch)
            self._check_end_to_end(images, crops, reference, batch)
            self._largest.sizes += 1


def iterate_batches(images: Sequence[Path]) -> Iterator[list[Path]]:
    """Yield every image once, in batches of 1, 2, 5, 1, 2, 5, ..."""
    start = 0
    for size in cycle(BATCH_SIZES):
        if start >= len(images):
            return
        yield list(images[start : start + size])
        start += size


def _difference(reference: Logits, logits: Logits) -> float:
    """Return the largest absolute difference, or NaN if a value is not finite."""
    if not np.isfinite(reference).all() or not np.isfinite(logits).all():
        return float("nan")
    return float(np.abs(reference - logits).max())


def _describe(reference: Logits, logits: Logits, files: Sequence[Path]) -> str:
    differences = np.abs(reference - logits)
    worst = np.unravel_index(
        int(np.nan_to_num(differences, nan=np.inf).argmax()), differences.shape
    )
    image, label = (int(index) for index in worst)
    return (
        f"|logit difference| {differences[image, label]:.3g} for class {label} of {files[image]} "
        f"(PyTorch {reference[image, label]:.5g}, ONNX Runtime {logits[image, label]:.5g}), batch {len(files)}."
    )
