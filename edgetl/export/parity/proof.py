"""Proof that the ONNX file answers as the PyTorch model does, in two parts and on real images.

- network: identical tensors through PyTorch and through the network cut out of the shipped file, at batch 1, 2 and 5;
- path: decoded photos through the whole shipped file against Pillow and PyTorch, in their own and in several other sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from edgetl.core.config.export import ExportConfig
from edgetl.core.errors import ParityError
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import normalize, resize_and_crop, resize_to
from edgetl.device.runtime.session import create_session
from edgetl.export.graph.assemble import extract_network, with_outputs
from edgetl.export.graph.preprocessing import CROPPED_IMAGE, IMAGE, PIXELS
from edgetl.export.graph.torch_export import LOGITS, NetworkGraph
from edgetl.export.parity.diagnosis import (
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
"""Heights and widths that the path part is tried at besides the photos' own: smaller and larger than the network's, odd and even."""
RELATIVE_TOLERANCE = 0.01
"""Of the largest |logit|: what the path part may differ by besides the tolerance."""
PIXEL_TOLERANCE = 1
"""Largest difference between a pixel resized in the graph and by Pillow."""


@dataclass
class NetworkParity:
    """What one part of the proof found; the fields stand as they are in bundle.json."""

    images: int = 0
    kind: str = ""
    """Where the images came from: `validation`, `training`, `given` or `generated`."""
    batches: tuple[int, ...] = BATCH_SIZES
    max_abs_diff: float = 0.0
    tolerance: float = 0.0


@dataclass
class EndToEndParity(NetworkParity):
    """The path part also looks at pixels and labels."""

    sizes: int = 0
    max_grey_levels: int | None = None
    top1_agreement: float = 1.0
    """Ties left out."""
    ties: int = 0
    """Images whose two best logits PyTorch itself hardly tells apart, and of which the file prefers the other."""


TIE_TOLERANCE = 1e-3
"""Logits: nearer than that, two probabilities differ by less than a thousandth of themselves, and one grey level decides."""


@dataclass(frozen=True)
class Parity:
    """A proof that held."""

    network: NetworkParity
    end_to_end: EndToEndParity
    pytorch_logits: Logits
    """[images, classes], in the order of the images."""
    onnx_logits: Logits
    """[images, classes], from the decoded photos through the whole file."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in a variant's `parity`."""
        return {"network": asdict(self.network), "path": asdict(self.end_to_end)}


class ParityProof:
    """One model under proof; `prove` raises at the first answer that differs."""

    def __init__(
        self,
        network: nn.Module,
        graph: NetworkGraph,
        model: onnx.ModelProto,
        contract: Preprocessing,
        config: ExportConfig,
        kind: str,
        size: tuple[int, int] | None = None,
    ) -> None:
        """Open the shipped file.

        Args:
            size: (height, width) of a file that takes images of one size only; the proof images are resized to it first.

        Raises:
            ParityError: the PyTorch network itself is not in evaluation mode.
        """
        mode = diagnose_training_mode(network)
        if mode:
            raise ParityError(f"Parity cannot be proven: {mode} No bundle was written.")
        self._network, self._graph, self._preprocessing, self._config = (
            network,
            graph,
            contract,
            config,
        )
        self._model = model
        self._size = size
        self._has_image_input = config.input == "image"
        self._onnx_network = extract_network(model)
        self._network_session = create_session(
            self._onnx_network.SerializeToString(), spinning=False
        )
        whole = with_outputs(model, [CROPPED_IMAGE, PIXELS]) if self._has_image_input else model
        self._end_to_end_session = create_session(whole.SerializeToString(), spinning=False)
        self._network_parity = NetworkParity(kind=kind, tolerance=config.network_tolerance)
        self._end_to_end_parity = EndToEndParity(
            kind=kind,
            tolerance=config.path_tolerance,
            max_grey_levels=0 if self._has_image_input else None,
        )

    def prove(
        self, images: Sequence[Path], progress: Callable[[int, int], None] | None = None
    ) -> Parity:
        """Run both parts over `images`; `progress` gets (done, total).

        Raises:
            ParityError: a difference beyond the tolerances, with the part, the image and the first module that differs.
            DecodeError: an image cannot be read.
        """
        pytorch_logits: list[Logits] = []
        onnx_logits: list[Logits] = []
        for batch in iterate_batches(images):
            decoded = [resize_to(load_image(path), self._size) for path in batch]
            crops = np.stack([resize_and_crop(image, self._preprocessing) for image in decoded])
            reference = self._check_network(crops, batch)
            answers = [self._check_end_to_end(np.expand_dims(image, 0), crops[i : i + 1], reference[i : i + 1], [batch[i]])
                       for i, image in enumerate(decoded)]  # fmt: skip
            pytorch_logits.append(reference)
            onnx_logits.extend(answers)
            self._network_parity.images += len(batch)
            self._end_to_end_parity.images += len(batch)
            if progress:
                progress(self._network_parity.images, len(images))
        if self._size is None:
            self._check_other_sizes(images)
        # Another device rounds otherwise again.
        self._end_to_end_parity.tolerance = max(
            self._end_to_end_parity.tolerance,
            CROSS_DEVICE_MARGIN * self._end_to_end_parity.max_abs_diff,
        )
        return Parity(
            self._network_parity,
            self._end_to_end_parity,
            np.concatenate(pytorch_logits),
            np.concatenate(onnx_logits),
        )

    def _check_network(self, crops: NDArray[np.uint8], files: Sequence[Path]) -> Logits:
        pixels = normalize(crops, self._preprocessing)
        with torch.inference_mode():
            reference: Logits = self._network(torch.from_numpy(pixels)).numpy()
        answer: Logits = self._network_session.run([LOGITS], {PIXELS: pixels})[0]
        difference = _difference(reference, answer)
        self._network_parity.max_abs_diff = max(self._network_parity.max_abs_diff, difference)
        if not difference <= self._network_parity.tolerance:
            place = describe_first_divergence(
                self._network,
                self._graph,
                self._onnx_network,
                pixels,
                self._network_parity.tolerance,
            )
            raise ParityError(
                f"Parity failed in the network part (identical tensors): {_describe(reference, answer, files)} "
                f"Tolerance {self._network_parity.tolerance:g}. {diagnose_logits(reference, answer, self._network_parity.tolerance) or f'{place} '}"
                "No bundle was written. Another --opset or version of torch may help; --tolerance accepts the difference."
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
            answer, planes, inputs = self._end_to_end_session.run(
                [LOGITS, CROPPED_IMAGE, PIXELS], {IMAGE: images}
            )
            cropped = planes.transpose(0, 2, 3, 1).astype(np.uint8)
            self._compare_pixels(cropped, crops, images.shape, files)
            self._compare_inputs(inputs, cropped, files)
        else:
            (answer,) = self._end_to_end_session.run(
                [LOGITS], {PIXELS: normalize(crops, self._preprocessing)}
            )
        difference = _difference(reference, answer)
        self._end_to_end_parity.max_abs_diff = max(self._end_to_end_parity.max_abs_diff, difference)
        chosen = np.take_along_axis(reference, answer.argmax(1)[:, None], 1)[:, 0]
        lost = reference.max(1) - chosen
        same_labels = bool((lost <= TIE_TOLERANCE).all())
        self._end_to_end_parity.ties += int(((lost > 0) & (lost <= TIE_TOLERANCE)).sum())
        # Logits of 20 answer to one grey level by more than logits of 2 do; see docs/decisions/006.
        allowed = self._config.path_tolerance + RELATIVE_TOLERANCE * float(np.abs(reference).max())
        if not difference <= allowed or not same_labels:
            raise ParityError(
                f"Parity failed in the path part (decoded photo {images.shape[2]} x {images.shape[1]} px to logits): "
                f"{_describe(reference, answer, files)} Tolerance {allowed:.3g}. No bundle was written. "
                f"{self._end_to_end_advice(reference, answer, files, difference <= allowed)}"
            )
        return np.asarray(answer)

    def _end_to_end_advice(
        self, reference: Logits, answer: Logits, files: Sequence[Path], near: bool
    ) -> str:
        if near:
            image = int((reference.argmax(1) != answer.argmax(1)).argmax())
            first, second = (float(value) for value in sorted(reference[image])[:-3:-1])
            return (
                f"The difference is small, but the top-1 label of {files[image]} is another: PyTorch's two best logits there are "
                f"{first:.5g} and {second:.5g}. Train further, or take this image out of the validation images."
            )
        if self._has_image_input:
            return (
                "The network part and the pixels agree, so the model amplifies differences of one grey level. "
                "--path-tolerance accepts the difference; --input tensor leaves preprocessing out of the file."
            )
        return "--path-tolerance accepts the difference."

    def _compare_pixels(
        self,
        cropped: NDArray[np.uint8],
        crops: NDArray[np.uint8],
        shape: tuple[int, ...],
        files: Sequence[Path],
    ) -> None:
        levels = np.abs(cropped.astype(np.int16) - crops.astype(np.int16))
        worst = int(levels.max())
        self._end_to_end_parity.max_grey_levels = max(
            self._end_to_end_parity.max_grey_levels or 0, worst
        )
        if worst > PIXEL_TOLERANCE:
            other = f"onnxruntime {onnxruntime.__version__} computes Resize differently here; "
            image, row, column, channel = (
                int(index) for index in np.unravel_index(int(levels.argmax()), levels.shape)
            )
            raise ParityError(
                f"Parity failed in the path part (pixels): {files[image]} ({shape[2]} x {shape[1]} px), resized in the graph, differs "
                f"from Pillow by {worst} grey levels at row {row}, column {column}, channel {'RGB'[channel]}; {PIXEL_TOLERANCE} is allowed. "
                f"{diagnose_pixels(cropped, crops, self._model) or other}No bundle was written; --input tensor leaves preprocessing out of it."
            )

    def _compare_inputs(
        self, inputs: NDArray[np.float32], crops: NDArray[np.uint8], files: Sequence[Path]
    ) -> None:
        said = diagnose_input(
            inputs, normalize(crops, self._preprocessing), crops, self._preprocessing
        )
        if said:
            raise ParityError(
                f"Parity failed in the path part (normalisation) on {files[0]}. {said}No bundle was written."
            )

    def _check_other_sizes(self, files: Sequence[Path]) -> None:
        """The same photos at sizes they do not have, in batches of equal size, as a video stream would feed them."""
        for index, (height, width) in enumerate(
            ((self._preprocessing.resize, self._preprocessing.resize), *EXTRA_IMAGE_SIZES)
        ):
            count = BATCH_SIZES[index % len(BATCH_SIZES)]
            chosen = [files[(index + step) % len(files)] for step in range(count)]
            images = np.stack(
                [
                    np.asarray(Image.fromarray(load_image(path)).resize((width, height)))
                    for path in chosen
                ]
            )
            crops = np.stack([resize_and_crop(image, self._preprocessing) for image in images])
            self._check_end_to_end(images, crops, self._check_network(crops, chosen), chosen)
            self._end_to_end_parity.sizes += 1


def iterate_batches(images: Sequence[Path]) -> Iterator[list[Path]]:
    """Every image once, in batches of 1, 2, 5, 1, 2, 5 ..."""
    position = turn = 0
    while position < len(images):
        size = BATCH_SIZES[turn % len(BATCH_SIZES)]
        yield list(images[position : position + size])
        position, turn = position + size, turn + 1


def _difference(reference: Logits, answer: Logits) -> float:
    """Largest absolute difference; NaN where either is not finite, which no tolerance admits."""
    return (
        float(np.abs(reference - answer).max())
        if np.isfinite(reference).all() and np.isfinite(answer).all()
        else float("nan")
    )


def _describe(reference: Logits, answer: Logits, files: Sequence[Path]) -> str:
    differences = np.abs(reference - answer)
    worst = np.unravel_index(
        int(np.nan_to_num(differences, nan=np.inf).argmax()), differences.shape
    )
    image, label = (int(index) for index in worst)
    return (
        f"|logit difference| {differences[image, label]:.3g} for class {label} of {files[image]} "
        f"(PyTorch {reference[image, label]:.5g}, ONNX Runtime {answer[image, label]:.5g}), batch {len(files)}."
    )
