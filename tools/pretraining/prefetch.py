"""A pool of images that processes of their own keep renewing: files of images, memory-mapped, the oldest given up as new ones come.

Which images a step sees is a function of the recipe and the step's number alone. A training that was ended and goes on sees what it would
have seen, though what was drawn meanwhile has to be drawn again.
"""

from __future__ import annotations

import multiprocessing
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from edgetl.core.errors import RunError
from edgetl.core.files import atomic_path
from tools.pretraining.dataset import Classes
from tools.pretraining.recipe import Recipe
from tools.pretraining.textures import Image

_AHEAD = 2
"""Files that are drawn before they are needed."""


def shard_labels(recipe: Recipe, shard: int) -> NDArray[np.int64]:
    """The class of each image of a file: every class equally often, as far as that goes, in random order."""
    total = recipe.classes.total
    rounds = -(-recipe.shard_images // total)
    generator = np.random.default_rng([recipe.seed, shard, 2])
    return np.concatenate([generator.permutation(total) for _ in range(rounds)])[
        : recipe.shard_images
    ].astype(np.int64)


def draw_shard(recipe: Recipe, shard: int) -> Image:
    """The images of a file, uint8 [shard_images, side, side, 3]."""
    first, side = shard * recipe.shard_images, recipe.image_side
    images = np.empty((recipe.shard_images, side, side, 3), np.uint8)
    classes: Classes = recipe.classes
    for number, label in enumerate(shard_labels(recipe, shard)):
        images[number] = classes.draw(int(label), first + number, side)
    return images


def pool_name(recipe: Recipe) -> str:
    """A folder's name that no recipe with other images has: what was drawn for one is never taken for another's."""
    classes = "-".join(map(str, recipe.classes.counts))
    return f"pool-{recipe.seed}-{classes}-{recipe.image_side}-{recipe.shard_images}"


def shard_path(folder: Path, shard: int) -> Path:
    """Where a file of the pool lies."""
    return folder / f"shard-{shard:06d}.npy"


def _make(asked: Connection, folder: Path, recipe: Recipe) -> None:
    import cv2

    cv2.setNumThreads(1)
    # Whoever asks may be killed: its end of the pipe closes, and this process ends too.
    with suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            shard = asked.recv()
            if not shard_path(folder, shard).exists():
                with atomic_path(shard_path(folder, shard)) as temporary:
                    np.save(temporary, draw_shard(recipe, shard))
            asked.send(shard)


class Pool:
    """The images of a recipe, drawn in the background as training goes on; a context manager."""

    def __init__(self, folder: Path, recipe: Recipe, makers: int = 1) -> None:
        """Start the processes that draw.

        Args:
            folder: for the files; what lies there of the same recipe is used again.
            makers: processes.
        """
        self._folder, self._recipe = folder, recipe
        self._asked = self._made = 0
        self._open: dict[int, NDArray[np.uint8]] = {}
        self._labels: dict[int, NDArray[np.int64]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for unfinished in folder.glob(".shard-*"):
            unfinished.unlink(missing_ok=True)
        context = multiprocessing.get_context("spawn")
        self._makers = []
        for _ in range(makers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_make, args=(theirs, folder, recipe), daemon=True)
            process.start()
            theirs.close()
            self._makers.append((process, ours))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process, asked in self._makers:
            asked.close()
            process.terminate()
            process.join()

    def window(self, step: int) -> range:
        """The files that a step draws from."""
        newest = self._recipe.first_shards + step * self._recipe.batch_size // (
            self._recipe.shard_images * self._recipe.reuse
        )
        return range(max(0, newest - self._recipe.window_shards), newest)

    def batch(self, step: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The images [batch, side, side, 3] and classes [batch] of a step; waits until they are drawn.

        Raises:
            RunError: a process that draws has ended.
        """
        window, recipe = self.window(step), self._recipe
        self._await(window)
        generator = np.random.default_rng([recipe.seed, step, 3])
        chosen = generator.integers(0, len(window) * recipe.shard_images, recipe.batch_size)
        images = np.empty((recipe.batch_size, recipe.image_side, recipe.image_side, 3), np.uint8)
        labels = np.empty(recipe.batch_size, np.int64)
        for position, number in enumerate(chosen):
            shard, within = (
                window.start + int(number) // recipe.shard_images,
                int(number) % recipe.shard_images,
            )
            images[position] = self._open[shard][within]
            labels[position] = self._labels[shard][within]
        return images, labels

    def _await(self, window: range) -> None:
        if not self._open:
            self._asked = self._made = window.start
        while self._asked < window.stop + _AHEAD:
            self._makers[self._asked % len(self._makers)][1].send(self._asked)
            self._asked += 1
        while self._made < window.stop:
            process, asked = self._makers[self._made % len(self._makers)]
            try:
                made = asked.recv()
            except (EOFError, OSError) as cause:
                raise RunError(
                    f"A process that draws images ended with status {process.exitcode}. Run the same command again."
                ) from cause
            self._open[made] = np.load(shard_path(self._folder, made), mmap_mode="r")
            self._labels[made] = shard_labels(self._recipe, made)
            self._made += 1
        for shard in [old for old in self._open if old < window.start]:
            del self._open[shard], self._labels[shard]
            shard_path(self._folder, shard).unlink(missing_ok=True)
