"""The run directory's place: free, or freed because the user said so; never a stranger's folder."""

from __future__ import annotations

import errno
import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Self

from edgetl.core.artifacts.foreign_files import describe_foreign_files, find_foreign_run_files
from edgetl.core.errors import RunError
from edgetl.core.files import move_aside, read_json
from edgetl.core.paths import RunDirectory, find_free_path


def choose_output_directory(
    output: Path | None, data: Path, model: str, force: bool
) -> RunDirectory:
    """The run directory to write; nothing is created or removed yet.

    Raises:
        RunError: the place is taken, or lies inside the data folder, where a later run would take it for a class.
    """
    data = data.expanduser().absolute()
    path = (
        output.expanduser()
        if output
        else find_free_path(Path("runs"), f"{data.resolve().name}-{model}")
    ).absolute()
    if path.resolve() == data.resolve() or data.resolve() in path.resolve().parents:
        raise RunError(
            f"The run directory {path} would lie inside the data folder {data}. Choose another with -o."
        )
    if path.resolve() in data.resolve().parents:
        raise RunError(
            f"The data folder {data} lies inside {path}. Choose another run directory with -o."
        )
    if path.exists() and not (path.is_dir() and not _entries(path)):
        if not force:
            raise RunError(
                f"{path} exists already. Choose another run directory with -o, or replace this one with --force."
            )
        _check_replaceable(path)
    return RunDirectory(path)


class OutputDirectory:
    """The place of a run, this process's alone; an older run that it replaces lies aside until the new one has something to show."""

    def __init__(self, run: RunDirectory) -> None:
        """Make the place empty.

        Raises:
            RunError: it is not replaceable after all, cannot be created, or another process trains there.
        """
        self._path = run.path
        self._replaced_run: Path | None = None
        existed = run.path.exists()
        self._lock = _acquire_lock(run) if existed else None
        try:
            if existed:
                _check_replaceable(run.path)
                self._replaced_run = move_aside(run.path)
            run.path.mkdir(parents=True)
        except OSError as cause:
            # Nothing was created here, so nothing is removed: what lies at the path may be the user's only copy.
            if self._replaced_run is not None:
                self._restore_replaced_run()
            self._release_lock()
            verb = "replaced" if existed else "created"
            raise RunError(
                f"{run.path} cannot be {verb} ({cause.strerror}). Choose another run directory with -o."
            ) from cause
        except RunError:
            self._release_lock()
            raise
        try:
            self._lock = _acquire_lock(run)
        except OSError as cause:
            self.rollback()
            raise RunError(
                f"{run.path} cannot be locked ({cause.strerror}). Choose another run directory with -o."
            ) from cause

    @classmethod
    @contextmanager
    def reopen(cls, run: RunDirectory) -> Iterator[Self]:
        """The place of a run that is gone on with: what fails before it goes on leaves everything as it is.

        Raises:
            RunError: another process trains there.
        """
        place = cls.__new__(cls)
        place._path, place._lock = run.path, _acquire_lock(run)
        # What a process that was killed has laid aside.
        place._replaced_run = next(
            iter(sorted(run.path.parent.glob(f".{run.path.name}.replaced-*/{run.path.name}"))), None
        )
        try:
            yield place
        finally:
            place._release_lock()

    def commit(self) -> None:
        """The new run stays; the older one is removed."""
        if self._replaced_run is not None:
            shutil.rmtree(self._replaced_run.parent, ignore_errors=True)
        self._release_lock()

    def rollback(self) -> None:
        """The new run came to nothing: it is removed, and the older one is where it was."""
        shutil.rmtree(self._path, ignore_errors=True)
        if self._replaced_run is not None:
            self._restore_replaced_run()
        self._release_lock()

    def _restore_replaced_run(self) -> None:
        assert self._replaced_run is not None
        self._replaced_run.rename(self._path)
        self._replaced_run.parent.rmdir()
        self._replaced_run = None

    def _release_lock(self) -> None:
        if self._lock is not None:
            # While it is held: whoever opens the next one begins with a file of its own.
            RunDirectory(self._path).lock.unlink(missing_ok=True)
            self._lock.close()
            self._lock = None


def _acquire_lock(run: RunDirectory) -> BinaryIO:
    """The run directory's lock, until it is closed or this process ends, whichever way; workers that it forks do not hold it.

    Raises:
        RunError: another process holds it.
    """
    stream = run.lock.open("ab")
    try:
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as cause:
        stream.close()
        if cause.errno in (errno.EACCES, errno.EAGAIN):
            raise RunError(
                f"Another process trains in {run.path}. Wait for it, or choose another run directory with -o."
            ) from cause
        # A file system without locks: two processes at once would be the user's own doing.
        return run.lock.open("ab")
    return stream


def _entries(path: Path) -> set[str]:
    # A lock without a run is what a process has left that was killed in its first moments.
    return {entry.name for entry in path.iterdir()} - {RunDirectory(path).lock.name}


def _check_replaceable(path: Path) -> None:
    if not path.is_dir() or path.is_symlink():
        raise RunError(
            f"{path} is not a run directory, so --force does not remove it. Choose another with -o."
        )
    entries = _entries(path)
    if not entries:
        return
    run = RunDirectory(path)
    content = read_json(
        run.config,
        RunError,
        f"{path} is not a run directory, so --force does not remove it: its config.json",
    )
    if "edgetl" not in content.get("versions", {}):
        raise RunError(
            f"{path} is not a run directory, so --force does not remove it. Choose another with -o."
        )
    foreign = find_foreign_run_files(path)
    if foreign:
        raise RunError(
            f"{describe_foreign_files(path, foreign)}, so --force does not remove it. Move them away, or choose another run directory with -o."
        )
