"""The pictures a benchmark runs on, prepared once so that every process is given the same bytes."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgetl.core.config.export import InputKind
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.runtime.bundle import Bundle
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import normalize, resize_and_crop, resize_to

InputSpec = tuple[InputKind, tuple[int, int] | None]
"""What a variant takes: the kind of input, and the (height, width) of the only images that it takes."""


@dataclass(frozen=True)
class BenchInputs:
    """A bundle's reference images as files and as tensors."""

    files: tuple[Path, ...]
    tensor_files: dict[InputSpec, Path]
    """For each kind and size of input an .npy file [n, 1, ...]."""
    logits: dict[tuple[int, int] | None, NDArray[np.float32]]
    """[n, classes]: PyTorch's answers for the files, and for those resized to a fixed size."""
    tolerance: float
    description: str
    """Of the encoded files: number, bytes, hash."""


def prepare_bench_inputs(bundle: Bundle, feeds: set[InputSpec], folder: Path) -> BenchInputs:
    """Decode the golden images and write the tensors of scope `model` into `folder`.

    For `image` they become squares of the length after resize: the resize in the graph is then the identity, and every
    runtime does the same work on them: crop, normalisation, network. For a fixed size they are resized to it.

    Raises:
        BundleError, DecodeError: a golden image is missing, altered or undecodable.
    """
    golden = bundle.load_golden()
    tensors = {}
    for kind, size in feeds:
        batches = [
            make_model_input(load_image(path), bundle.preprocessing, kind, size)
            for path in golden.files
        ]
        name = kind if size is None else f"{kind}-{size[0]}x{size[1]}"
        tensors[kind, size] = folder / f"{name}.npy"
        # Through a buffer: NumPy's own way into a file says neither that the disk is full nor which.
        encoded_array = io.BytesIO()
        np.save(encoded_array, np.stack(batches))
        tensors[kind, size].write_bytes(encoded_array.getbuffer())
    encoded = [path.read_bytes() for path in golden.files]
    digest = hashlib.sha256(
        b"".join(hashlib.sha256(content).digest() for content in encoded)
    ).hexdigest()
    described = (
        f"{len(encoded)} encoded images, {sum(map(len, encoded))} bytes, sha256 {digest[:12]}"
    )
    files = tuple(path.resolve() for path in golden.files)
    logits: dict[tuple[int, int] | None, NDArray[np.float32]] = {None: golden.logits}
    logits |= {variant.size: golden.logits_for(variant) for variant in bundle.variants}
    return BenchInputs(files, tensors, logits, golden.tolerance, described)


def make_model_input(
    image: NDArray[np.uint8],
    contract: Preprocessing,
    kind: InputKind,
    size: tuple[int, int] | None = None,
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """What scope `model` feeds for a decoded photo: a batch of one."""
    if kind == "tensor":
        return normalize(resize_and_crop(image, contract)[None], contract)
    if size is not None:
        return resize_to(image, size)[None]
    side = (contract.resize, contract.resize)
    return np.asarray(Image.fromarray(image).resize(side, Image.Resampling.BILINEAR))[None]
