"""Pool of generated images: worker processes write shards, training memory-maps the newest ones.

The images of a step depend only on the recipe and the step number. A resumed training gets the same
images as an uninterrupted one; deleted shards are drawn again.
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
"""Number of shards that are drawn ahead."""


def shard_labels(recipe: Recipe, shard: int) -> NDArray[np.int64]:
    """Return the class of each image of a shard: all classes equally often, in random order.

    If the shard's size is no multiple of the number of classes, the last ones are cut off.
    """
    total = recipe.classes.total
    rounds = -(-recipe.shard_images // total)
    generator = np.random.default_rng([recipe.seed, shard, 2])
    return np.concatenate([generator.permutation(total) for _ in range(rounds)])[
        : recipe.shard_images
    ].astype(np.int64)


def draw_shard(recipe: Recipe, shard: int) -> Image:
    """Draw the images of a shard, uint8 [shard_images, side, side, 3]."""
    first = shard * recipe.shard_images
    side = recipe.image_side
    images = np.empty((recipe.shard_images, side, side, 3), np.uint8)
    classes: Classes = recipe.classes
    for number, label in enumerate(shard_labels(recipe, shard)):
        images[number] = classes.draw(int(label), first + number, side)
    return images


def pool_name(recipe: Recipe) -> str:
    """Return the folder name of the recipe's images, different for recipes with other images."""
    classes = "-".join(map(str, recipe.classes.counts))
    return f"pool-{recipe.seed}-{classes}-{recipe.image_side}-{recipe.shard_images}"


def shard_path(folder: Path, shard: int) -> Path:
    """Return the path of a shard."""
    return folder / f"shard-{shard:06d}.npy"


def _draw_shards(connection: Connection, folder: Path, recipe: Recipe) -> None:
    import cv2

    cv2.setNumThreads(1)
    # If the training process is killed, its end of the pipe closes and this process exits too.
    with suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            shard = connection.recv()
            if not shard_path(folder, shard).exists():
                with atomic_path(shard_path(folder, shard)) as temporary:
                    np.save(temporary, draw_shard(recipe, shard))
            connection.send(shard)


class ImagePool:
    """Images of a recipe, drawn in the background during training; a context manager."""

    def __init__(self, folder: Path, recipe: Recipe, workers: int = 1) -> None:
        """Start the worker processes.

        Args:
            folder: folder of the shards; existing shards of the same recipe are reused.
            recipe: recipe whose images are drawn.
            workers: number of processes.
        """
        self._folder = folder
        self._recipe = recipe
        self._next_request = 0
        self._next_shard = 0
        self._open: dict[int, NDArray[np.uint8]] = {}
        self._labels: dict[int, NDArray[np.int64]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for unfinished in folder.glob(".shard-*"):
            unfinished.unlink(missing_ok=True)
        context = multiprocessing.get_context("spawn")
        self._workers = []
        for _ in range(workers):
            connection, worker_connection = context.Pipe()
            process = context.Process(
                target=_draw_shards, args=(worker_connection, folder, recipe), daemon=True
            )
            process.start()
            worker_connection.close()
            self._workers.append((process, connection))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process, connection in self._workers:
            connection.close()
            process.terminate()
            process.join()

    def window(self, step: int) -> range:
        """Return the shards that the images of a step are sampled from."""
        recipe = self._recipe
        images_per_shard = recipe.shard_images * recipe.reuse
        stop = recipe.first_shards + step * recipe.batch_size // images_per_shard
        return range(max(0, stop - recipe.window_shards), stop)

    def batch(self, step: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return the images [batch, side, side, 3] and classes [batch] of a step.

        Waits until the images are drawn.

        Raises:
            RunError: a worker process exited.
        """
        recipe = self._recipe
        window = self.window(step)
        self._wait_for(window)
        generator = np.random.default_rng([recipe.seed, step, 3])
        numbers = generator.integers(0, len(window) * recipe.shard_images, recipe.batch_size)
        images = np.empty((recipe.batch_size, recipe.image_side, recipe.image_side, 3), np.uint8)
        labels = np.empty(recipe.batch_size, np.int64)
        for position, number in enumerate(numbers):
            offset, index = divmod(int(number), recipe.shard_images)
            shard = window.start + offset
            images[position] = self._open[shard][index]
            labels[position] = self._labels[shard][index]
        return images, labels

    def _wait_for(self, window: range) -> None:
        if not self._open:
            self._next_request = window.start
            self._next_shard = window.start
        while self._next_request < window.stop + _AHEAD:
            _, connection = self._workers[self._next_request % len(self._workers)]
            connection.send(self._next_request)
            self._next_request += 1
        while self._next_shard < window.stop:
            process, connection = self._workers[self._next_shard % len(self._workers)]
            try:
                shard = connection.recv()
            except (EOFError, OSError) as cause:
                raise RunError(
                    f"A process that draws images exited with status {process.exitcode}. "
                    "Run the same command again."
                ) from cause
            self._open[shard] = np.load(shard_path(self._folder, shard), mmap_mode="r")
            self._labels[shard] = shard_labels(self._recipe, shard)
            self._next_shard += 1
        for shard in [number for number in self._open if number < window.start]:
            del self._open[shard], self._labels[shard]
            shard_path(self._folder, shard).unlink(missing_ok=True)
