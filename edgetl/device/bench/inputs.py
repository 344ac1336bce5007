"""Benchmark inputs, prepared once so that every process gets the same bytes."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgetl.core.config.export import InputKind
from edgetl.device.runtime.bundle import Bundle
from edgetl.device.runtime.golden import GoldenSet
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import make_model_input

InputSpec = tuple[InputKind, tuple[int, int] | None]
"""Input kind of a variant, and its fixed image size (height, width) or None."""


@dataclass(frozen=True)
class BenchInputs:
    """Golden images of a bundle, as files and as tensors."""

    files: tuple[Path, ...]
    tensor_files: dict[InputSpec, Path]
    """An .npy file [n, 1, ...] for each input spec."""
    golden: GoldenSet
    """The same images with the references of the outputs."""
    description: str
    """Number, bytes and hash of the encoded files."""


def prepare_bench_inputs(bundle: Bundle, specs: set[InputSpec], folder: Path) -> BenchInputs:
    """Decode the golden images and write the tensors of scope `model` into `folder`.

    For `image` they become squares of the length after resize: the resize in the graph is then the
    identity, and every runtime does the same work, namely crop, normalization and network. For a
    fixed size they are resized to it.

    Raises:
        BundleError, DecodeError: a golden image is missing, modified or cannot be decoded.
    """
    golden = bundle.load_golden()
    tensor_files = {}
    for kind, size in specs:
        batches = [
            make_model_input(load_image(path), bundle.preprocessing, kind, size)
            for path in golden.files
        ]
        name = kind if size is None else f"{kind}-{size[0]}x{size[1]}"
        tensor_files[kind, size] = folder / f"{name}.npy"
        # Through a buffer, as NumPy's error for a full disk has neither the cause nor the file.
        encoded_array = io.BytesIO()
        np.save(encoded_array, np.stack(batches))
        tensor_files[kind, size].write_bytes(encoded_array.getbuffer())
    contents = [path.read_bytes() for path in golden.files]
    digests = b"".join(hashlib.sha256(content).digest() for content in contents)
    digest = hashlib.sha256(digests).hexdigest()
    description = (
        f"{len(contents)} encoded images, {sum(map(len, contents))} bytes, sha256 {digest[:12]}"
    )
    files = tuple(path.resolve() for path in golden.files)
    return BenchInputs(files, tensor_files, golden, description)
