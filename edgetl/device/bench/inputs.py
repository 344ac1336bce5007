"""The pictures a benchmark runs on, prepared once so that every process is given the same bytes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgetl.core.config import InputKind
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.bundle import Bundle
from edgetl.device.images import load_image
from edgetl.device.preprocessing import normalise, resize_and_crop


@dataclass(frozen=True)
class Pictures:
    """A bundle's reference images as files and as tensors."""

    files: tuple[Path, ...]
    tensors: dict[InputKind, Path]
    """For each kind of input an .npy file [n, 1, ...]."""
    logits: NDArray[np.float32]
    """[n, classes]: PyTorch's answers for the files."""
    tolerance: float
    description: str
    """Of the encoded files: number, bytes, hash."""


def prepare_pictures(bundle: Bundle, kinds: set[InputKind], folder: Path) -> Pictures:
    """Decode the golden images and write the tensors of scope `model` into `folder`.

    For `image` they become squares of the length after resize: the resize in the graph is then the identity, and every
    runtime does the same work on them: crop, normalisation, network.

    Raises:
        BundleError, DecodeError: a golden image is missing, altered or undecodable.
    """
    golden = bundle.golden()
    tensors = {}
    for kind in sorted(kinds):
        batches = [model_input(load_image(path), bundle.preprocessing, kind) for path in golden.files]
        tensors[kind] = folder / f"{kind}.npy"
        np.save(tensors[kind], np.stack(batches))
    encoded = [path.read_bytes() for path in golden.files]
    digest = hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in encoded)).hexdigest()
    described = f"{len(encoded)} encoded images, {sum(map(len, encoded))} bytes, sha256 {digest[:12]}"
    files = tuple(path.resolve() for path in golden.files)
    return Pictures(files, tensors, golden.logits, golden.tolerance, described)


def model_input(image: NDArray[np.uint8], contract: Preprocessing, kind: InputKind) -> NDArray[np.uint8] | NDArray[np.float32]:
    """What scope `model` feeds for a decoded photo: a batch of one."""
    if kind == "tensor":
        return normalise(resize_and_crop(image, contract)[None], contract)
    side = (contract.resize, contract.resize)
    return np.asarray(Image.fromarray(image).resize(side, Image.Resampling.BILINEAR))[None]
