"""What the frozen blocks give for every view of every image: computed once, kept in memory-mapped files, used again by later runs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgetl.core.cache import prune
from edgetl.core.errors import EdgetlError
from edgetl.core.files import read_json, write_json
from edgetl.train.prefix import Values

_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}


@dataclass(frozen=True)
class Rows:
    """Shape and type of one value that crosses the cut, without the batch axis."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        """Of one image."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Activations:
    """The values at one cut."""

    train: Values
    """Each [views, training images, ...]."""
    val: Values
    """Each [validation images, ...]."""

    @property
    def views(self) -> int:
        """Views of each training image."""
        return len(self.train[0])

    @property
    def total_bytes(self) -> int:
        """Of all values."""
        return sum(value.numel() * value.element_size() for value in (*self.train, *self.val))

    def to(self, device: torch.device) -> Activations:
        """On another device."""
        return Activations(tuple(value.to(device) for value in self.train), tuple(value.to(device) for value in self.val))

    def map(self, train: Callable[..., Values], val: Callable[..., Values], batch: int = 128) -> Activations:
        """The values at a later cut, by functions from these to those, one for each part."""

        def through(function: Callable[..., Values], values: Values) -> Values:
            count = len(values[0])
            parts = [function(*(value[at : at + batch].float() for value in values)) for at in range(0, count, batch)]
            return tuple(torch.cat(part) for part in zip(*parts, strict=True))

        views = [through(train, tuple(value[view] for value in self.train)) for view in range(self.views)]
        later = tuple(torch.stack(value) for value in zip(*views, strict=True))
        return Activations(later, through(val, self.val) if len(self.val[0]) else tuple(value[0, :0] for value in later))


def activations_key(facts: dict[str, Any]) -> str:
    """Hexadecimal name of everything that the values depend on."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


class ActivationStore:
    """A folder of activations, each entry whole or absent, the least recently used removed first."""

    def __init__(self, folder: Path, budget_bytes: int) -> None:
        self._folder = folder
        self._budget = budget_bytes

    def open(self, key: str) -> Activations | None:
        """The entry, mapped from its files; None where it is absent or not whole."""
        entry = self._folder / key
        try:
            meta = read_json(entry / "meta.json", EdgetlError, "The cache entry")
            train, val = (
                tuple(_map(entry / f"{part}-{at}.bin", value["shape"], _DTYPES[value["dtype"]]) for at, value in enumerate(meta[part]))
                for part in ("train", "val")
            )
            os.utime(entry)
        except (EdgetlError, OSError, KeyError, TypeError, ValueError, RuntimeError):
            return None
        return Activations(train, val)

    @contextmanager
    def create(
        self, key: str, train: Sequence[tuple[int, ...]], val: Sequence[tuple[int, ...]], rows: Sequence[Rows]
    ) -> Iterator[Activations]:
        """Yield an entry to be filled; it is kept when the block ends without an error.

        Args:
            train, val: leading axes of the training and validation values.
            rows: what follows them; validation values are float32.

        Raises:
            OSError: there is no room, or the folder cannot be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=self._folder))
        try:
            shapes = {
                "train": [((*lead, *row.shape), row.dtype) for lead, row in zip(train, rows, strict=True)],
                "val": [((*lead, *row.shape), torch.float32) for lead, row in zip(val, rows, strict=True)],
            }
            for part, values in shapes.items():
                for at, (shape, dtype) in enumerate(values):
                    _reserve(made / f"{part}-{at}.bin", prod(shape) * dtype.itemsize)
            filled = Activations(
                *(
                    tuple(_map(made / f"{part}-{at}.bin", shape, dtype, writable=True) for at, (shape, dtype) in enumerate(values))
                    for part, values in shapes.items()
                )
            )
            yield filled
            described = {part: [{"shape": list(shape), "dtype": str(dtype)} for shape, dtype in values] for part, values in shapes.items()}
            write_json(made / "meta.json", described)
            entry = self._folder / key
            shutil.rmtree(entry, ignore_errors=True)
            made.rename(entry)
            prune(self._folder, self._budget, keep=entry)
        finally:
            shutil.rmtree(made, ignore_errors=True)


def empty_activations(train: Sequence[tuple[int, ...]], val: Sequence[tuple[int, ...]], rows: Sequence[Rows]) -> Activations:
    """As the store's, in memory; for where files cannot be written."""
    return Activations(
        tuple(torch.empty((*lead, *row.shape), dtype=row.dtype) for lead, row in zip(train, rows, strict=True)),
        tuple(torch.empty((*lead, *row.shape), dtype=torch.float32) for lead, row in zip(val, rows, strict=True)),
    )


def _reserve(path: Path, size: int) -> None:
    # Blocks are taken now: a disk that is full while a mapping is written to kills the process.
    with path.open("wb") as stream:
        if size:
            os.posix_fallocate(stream.fileno(), 0, size)


def _map(path: Path, shape: Sequence[int], dtype: torch.dtype, writable: bool = False) -> Tensor:
    count = prod(shape)
    if path.stat().st_size != count * dtype.itemsize:
        raise ValueError(f"{path} has not the size that its entry names")
    if not count:
        return torch.empty(tuple(shape), dtype=dtype)
    return torch.from_file(str(path), shared=writable, size=count, dtype=dtype).view(tuple(shape))
