"""Disk store for the features of frozen blocks, memory-mapped and reused by later runs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from edgetl.core.cache import prune_cache, read_cache_entry, write_cache_entry
from edgetl.core.files import sha256_file
from edgetl.core.typed_json import parse_as, to_json
from edgetl.train.common.distributed import SINGLE_PROCESS, DistributedGroup
from edgetl.train.common.precision import Tensors

_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}


@dataclass(frozen=True)
class TensorSpec:
    """Shape, without the batch axis, and dtype of a value that crosses a cut."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes_per_image(self) -> int:
        """Size of one image's value."""
        return prod(self.shape) * self.dtype.itemsize


def tensor_specs(values: Tensors) -> tuple[TensorSpec, ...]:
    """Return the spec of each value [batch, ...]."""
    return tuple(TensorSpec(tuple(value.shape[1:]), value.dtype) for value in values)


@dataclass(frozen=True)
class _TensorFile:
    """File of one tensor."""

    shape: tuple[int, ...]
    dtype: str
    sha256: str
    """Checked on opening: after a power failure a file may have its size but not its bytes."""


@dataclass(frozen=True)
class _EntryRecord:
    """Content of meta.json."""

    train: tuple[_TensorFile, ...]
    val: tuple[_TensorFile, ...]


@dataclass(frozen=True)
class Features:
    """Values at one cut."""

    train: Tensors
    """Training values, each [views, images, ...]."""
    val: Tensors
    """Validation values, each [images, ...]."""

    @property
    def views(self) -> int:
        """Number of views per training image."""
        return len(self.train[0])

    @property
    def total_bytes(self) -> int:
        """Size of all values."""
        return sum(value.numel() * value.element_size() for value in (*self.train, *self.val))

    def to(self, device: torch.device) -> Features:
        """Return a copy on `device`."""
        return Features(
            tuple(value.to(device) for value in self.train),
            tuple(value.to(device) for value in self.val),
        )


def hash_feature_key(facts: Mapping[str, object]) -> str:
    """Return the entry name for `facts`: everything that the features depend on, hashed."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class FeatureStore:
    """A folder of features. Entries are complete or absent; the least recently used go first."""

    def __init__(
        self, folder: Path, budget_bytes: int, group: DistributedGroup = SINGLE_PROCESS
    ) -> None:
        """Open the store; `group` are the processes that fill an entry together."""
        self._process_group = group
        self._folder = folder
        self._budget = budget_bytes
        self._used: set[Path] = set()

    def open(self, key: str) -> Features | None:
        """Return the entry, mapped from its files; None if it is absent or damaged."""
        entry = self._folder / key
        try:
            content = read_cache_entry(entry / "meta.json")
            if content is None:
                return None
            record = parse_as(_EntryRecord, content, "meta.json")
            train, val = (
                tuple(
                    _memory_map_verified(entry / f"{split}-{index}.bin", file)
                    for index, file in enumerate(files)
                )
                for split, files in (("train", record.train), ("val", record.val))
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
        specs: Sequence[TensorSpec],
    ) -> Iterator[Features]:
        """Yield a new entry to fill in; it is stored if the block ends without an error.

        Failure to store the filled entry is ignored: the yielded features remain valid.

        Args:
            key: name of the entry.
            train: leading axes of each training value.
            val: leading axes of each validation value.
            specs: remaining axes and dtype of each value; validation values are float32.

        Raises:
            OSError: the disk is full or the folder is not writable. Raised only before the block,
                so that no computed features are lost.
        """
        shapes = {
            "train": [
                ((*lead, *spec.shape), spec.dtype) for lead, spec in zip(train, specs, strict=True)
            ],
            "val": [
                ((*lead, *spec.shape), torch.float32) for lead, spec in zip(val, specs, strict=True)
            ],
        }
        files = [
            (f"{split}-{index}.bin", shape, dtype)
            for split, values in shapes.items()
            for index, (shape, dtype) in enumerate(values)
        ]
        folder = self._process_group.run_on_main(lambda: self._preallocate_entry(key, files))
        try:
            tensors = {
                name: _memory_map(folder / name, shape, dtype, writable=True)
                for name, shape, dtype in files
            }
            yield Features(
                *(
                    tuple(value for name, value in tensors.items() if name.startswith(split))
                    for split in ("train", "val")
                ),
            )
            self._process_group.barrier()
            if self._process_group.is_main:
                # Another run may have stored the same entry meanwhile, or the disk has failed.
                with suppress(OSError):
                    self._commit(folder, key, files)
            self._process_group.barrier()
        finally:
            if self._process_group.is_main:
                shutil.rmtree(folder, ignore_errors=True)

    def _preallocate_entry(
        self, key: str, files: Sequence[tuple[str, tuple[int, ...], torch.dtype]]
    ) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=self._folder))
        try:
            for name, shape, dtype in files:
                _preallocate_file(folder / name, prod(shape) * dtype.itemsize)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return folder

    def _commit(
        self, folder: Path, key: str, files: Sequence[tuple[str, tuple[int, ...], torch.dtype]]
    ) -> None:
        train, val = (
            tuple(
                _TensorFile(shape, str(dtype), sha256_file(folder / name))
                for name, shape, dtype in files
                if name.startswith(split)
            )
            for split in ("train", "val")
        )
        write_cache_entry(folder / "meta.json", to_json(_EntryRecord(train, val)))
        entry = self._folder / key
        shutil.rmtree(entry, ignore_errors=True)
        folder.rename(entry)
        self._used.add(entry)
        prune_cache(self._folder, self._budget, keep=self._used)


def empty_features(
    train: Sequence[tuple[int, ...]], val: Sequence[tuple[int, ...]], specs: Sequence[TensorSpec]
) -> Features:
    """Return features in memory, uninitialized, with the shapes and dtypes of the store's.

    Used if the store's folder is not writable.
    """
    return Features(
        tuple(
            torch.empty((*lead, *spec.shape), dtype=spec.dtype)
            for lead, spec in zip(train, specs, strict=True)
        ),
        tuple(
            torch.empty((*lead, *spec.shape), dtype=torch.float32)
            for lead, spec in zip(val, specs, strict=True)
        ),
    )


def _preallocate_file(path: Path, size: int) -> None:
    # Reserves the blocks now: a disk that fills up while a mapping is written kills the process.
    with path.open("wb") as stream:
        if size:
            os.posix_fallocate(stream.fileno(), 0, size)


def _memory_map_verified(path: Path, file: _TensorFile) -> Tensor:
    if sha256_file(path) != file.sha256:
        raise ValueError(f"The SHA-256 of {path} does not match meta.json")
    return _memory_map(path, file.shape, _DTYPES[file.dtype])


def _memory_map(
    path: Path, shape: Sequence[int], dtype: torch.dtype, writable: bool = False
) -> Tensor:
    count = prod(shape)
    if path.stat().st_size != count * dtype.itemsize:
        raise ValueError(f"The size of {path} does not match meta.json")
    if not count:
        return torch.empty(tuple(shape), dtype=dtype)
    return torch.from_file(str(path), shared=writable, size=count, dtype=dtype).view(tuple(shape))


def move_if_fits(features: Features, device: torch.device) -> Features:
    """Return the features on `device` if it is a GPU with room for them; else unchanged."""
    if device.type != "cuda" or features.train[0].device == device:
        return features
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return features.to(device) if features.total_bytes < free_bytes // 3 else features
