"""Importing large packages without the garbage collector going through them again and again."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Import inside; what was made is then taken for permanent.

    PyTorch's modules are half a million objects that live until the end: collecting while they are made costs a fifth of the import, and
    every later collection would go through them again.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        # Extensions look for leaks when the interpreter ends, and would report everything that is frozen.
        atexit.register(gc.unfreeze)
