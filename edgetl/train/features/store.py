"""What the frozen blocks give for every view of every image: computed once, kept in memory-mapped files, used again by later runs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgetl.core.cache import prune_cache, read_cache_entry, write_cache_entry
from edgetl.core.files import sha256_file
from edgetl.train.common.distributed import SINGLE_PROCESS, DistributedGroup
from edgetl.train.common.precision import Tensors

_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}


@dataclass(frozen=True)
class TensorSpec:
    """Shape and type of one value that crosses the cut, without the batch axis."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes_per_image(self) -> int:
        """Of one image."""
        return prod(self.shape) * self.dtype.itemsize


def tensor_specs(values: Tensors) -> tuple[TensorSpec, ...]:
    """One for each of values [batch, ...]."""
    return tuple(TensorSpec(tuple(value.shape[1:]), value.dtype) for value in values)


@dataclass(frozen=True)
class Features:
    """The values at one cut."""

    train: Tensors
    """Each [views, training images, ...]."""
    val: Tensors
    """Each [validation images, ...]."""

    @property
    def views(self) -> int:
        """Views of each training image."""
        return len(self.train[0])

    @property
    def total_bytes(self) -> int:
        """Of all values."""
        return sum(value.numel() * value.element_size() for value in (*self.train, *self.val))

    def to(self, device: torch.device) -> Features:
        """On another device."""
        return Features(
            tuple(value.to(device) for value in self.train),
            tuple(value.to(device) for value in self.val),
        )


def hash_feature_key(facts: dict[str, Any]) -> str:
    """Hexadecimal name of everything that the values depend on."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


class FeatureStore:
    """A folder of activations, each entry whole or absent, the least recently used removed first."""

    def __init__(
        self, folder: Path, budget_bytes: int, sharers: DistributedGroup = SINGLE_PROCESS
    ) -> None:
        """Take the processes that fill an entry together, each its part."""
        self._process_group = sharers
        self._folder = folder
        self._budget = budget_bytes
        self._used: set[Path] = set()

    def open(self, key: str) -> Features | None:
        """The entry, mapped from its files; None where it is absent, or not what was written."""
        entry = self._folder / key
        try:
            meta = read_cache_entry(entry / "meta.json")
            if meta is None:
                return None
            train, val = (
                tuple(
                    _memory_map_verified(entry / f"{part}-{at}.bin", value)
                    for at, value in enumerate(meta[part])
                )
                for part in ("train", "val")
            )
            os.utime(entry)
        except (OSError, ValueError, RuntimeError):
            return None
        self._used.add(entry)
        return Features(train, val)

    @contextmanager
    def create(
        self,
        key: str,
        train: Sequence[tuple[int, ...]],
        val: Sequence[tuple[int, ...]],
        rows: Sequence[TensorSpec],
    ) -> Iterator[Features]:
        """Yield an entry to be filled; it is kept when the block ends without an error and nothing stands in the way.

        Args:
            train, val: leading axes of the training and validation values.
            rows: what follows them; validation values are float32.

        Raises:
            OSError: there is no room, or the folder cannot be written. Only before the block: what was computed is never lost.
        """
        shapes = {
            "train": [
                ((*lead, *row.shape), row.dtype) for lead, row in zip(train, rows, strict=True)
            ],
            "val": [
                ((*lead, *row.shape), torch.float32) for lead, row in zip(val, rows, strict=True)
            ],
        }
        named = [
            (f"{part}-{at}.bin", *value)
            for part, values in shapes.items()
            for at, value in enumerate(values)
        ]
        made = self._process_group.run_on_main(lambda: self._preallocate_entry(key, named))
        try:
            filled = {
                name: _memory_map(made / name, shape, dtype, writable=True)
                for name, shape, dtype in named
            }
            yield Features(
                *(
                    tuple(value for name, value in filled.items() if name.startswith(part))
                    for part in ("train", "val")
                ),
            )
            self._process_group.barrier()
            if self._process_group.is_main:
                with suppress(
                    OSError
                ):  # another run has made the same entry meanwhile, or the disk is in trouble
                    self._commit(made, key, named)
            self._process_group.barrier()
        finally:
            if self._process_group.is_main:
                shutil.rmtree(made, ignore_errors=True)

    def _preallocate_entry(
        self, key: str, named: Sequence[tuple[str, tuple[int, ...], torch.dtype]]
    ) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=self._folder))
        try:
            for name, shape, dtype in named:
                _preallocate_file(made / name, prod(shape) * dtype.itemsize)
        except OSError:
            shutil.rmtree(made, ignore_errors=True)
            raise
        return made

    def _commit(
        self, made: Path, key: str, named: Sequence[tuple[str, tuple[int, ...], torch.dtype]]
    ) -> None:
        described: dict[str, Any] = {"train": [], "val": []}
        for name, shape, dtype in named:
            # After a power cut a file may have its size and not its bytes.
            facts = {"shape": list(shape), "dtype": str(dtype), "sha256": sha256_file(made / name)}
            described[name.partition("-")[0]].append(facts)
        write_cache_entry(made / "meta.json", described)
        entry = self._folder / key
        shutil.rmtree(entry, ignore_errors=True)
        made.rename(entry)
        self._used.add(entry)
        prune_cache(self._folder, self._budget, keep=self._used)


def empty_features(
    train: Sequence[tuple[int, ...]], val: Sequence[tuple[int, ...]], rows: Sequence[TensorSpec]
) -> Features:
    """As the store's, in memory; for where files cannot be written."""
    return Features(
        tuple(
            torch.empty((*lead, *row.shape), dtype=row.dtype)
            for lead, row in zip(train, rows, strict=True)
        ),
        tuple(
            torch.empty((*lead, *row.shape), dtype=torch.float32)
            for lead, row in zip(val, rows, strict=True)
        ),
    )


def _preallocate_file(path: Path, size: int) -> None:
    # Blocks are taken now: a disk that is full while a mapping is written to kills the process.
    with path.open("wb") as stream:
        if size:
            os.posix_fallocate(stream.fileno(), 0, size)


def _memory_map_verified(path: Path, facts: dict[str, Any]) -> Tensor:
    if sha256_file(path) != facts["sha256"]:
        raise ValueError(f"{path} does not hold what was written")
    return _memory_map(path, facts["shape"], _DTYPES[facts["dtype"]])


def _memory_map(
    path: Path, shape: Sequence[int], dtype: torch.dtype, writable: bool = False
) -> Tensor:
    count = prod(shape)
    if path.stat().st_size != count * dtype.itemsize:
        raise ValueError(f"{path} has not the size that its entry names")
    if not count:
        return torch.empty(tuple(shape), dtype=dtype)
    return torch.from_file(str(path), shared=writable, size=count, dtype=dtype).view(tuple(shape))


def move_if_fits(activations: Features, device: torch.device) -> Features:
    """The activations on `device` where it is a GPU with room for them; else where they are."""
    if device.type != "cuda" or activations.train[0].device == device:
        return activations
    free, _ = torch.cuda.mem_get_info(device)
    return activations.to(device) if activations.total_bytes < free // 3 else activations
