"""Exclusive lock files between processes and threads."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_held_descriptors: set[int] = set()


@contextmanager
def exclusive_lock(path: Path, error: Exception) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, which is removed at the end.

    The operating system releases the lock when the process ends, even after a crash, and forked
    workers that outlive the process do not hold it. The file's folder may be moved meanwhile. On a
    file system without locks, nothing is excluded.

    Raises:
        error: Another process or thread holds the lock.
        OSError: The file cannot be opened.
    """
    while not _is_file_at(descriptor := _lock_file(path, error), path):
        # Another process has just removed this lock file; try again with a new one.
        os.close(descriptor)
    _held_descriptors.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _held_descriptors:
            # Removed while locked, so that the next process creates a lock file of its own.
            if _is_file_at(descriptor, path):
                path.unlink(missing_ok=True)
            _held_descriptors.remove(descriptor)
            os.close(descriptor)


def _lock_file(path: Path, error: Exception) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as cause:
        # Any other error: the file system does not support locks.
        if cause.errno in (errno.EACCES, errno.EAGAIN):
            os.close(descriptor)
            raise error from cause
    return descriptor


def _is_file_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _close_inherited_locks() -> None:
    # A lock made by flock is released when the last process closes the file.
    while _held_descriptors:
        os.close(_held_descriptors.pop())


os.register_at_fork(after_in_child=_close_inherited_locks)
