"""Output directory of a run: choice, exclusive lock, and replacement of an earlier run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Self

from edgetl.core.architectures import file_stem
from edgetl.core.artifacts.foreign_files import describe_foreign_files, find_foreign_run_files
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import RunError
from edgetl.core.files import move_aside, read_json
from edgetl.core.locks import exclusive_lock
from edgetl.core.paths import RunDirectory, StrPath, find_free_path


def choose_output_directory(
    output: Path | None, data: StrPath, model: str, force: bool
) -> RunDirectory:
    """Choose the run directory; nothing is created or removed.

    Args:
        output: directory chosen by the user; None uses a free name in `runs`.
        data: folder of the images.
        model: name of the architecture, part of the default name.
        force: allow replacing an earlier run.

    Raises:
        RunError: the directory already exists, or it lies inside the data folder, where it would
            become a class of the next run.
    """
    data = Path(data).expanduser().absolute()
    path = output or find_free_path(Path("runs"), f"{data.resolve().name}-{file_stem(model)}")
    path = path.expanduser().absolute()
    if path.resolve() == data.resolve() or data.resolve() in path.resolve().parents:
        raise RunError(
            f"The run directory {path} must not be inside the data folder {data}. "
            "Choose another with -o."
        )
    if path.resolve() in data.resolve().parents:
        raise RunError(
            f"The data folder {data} must not be inside the run directory {path}. "
            "Choose another with -o."
        )
    if path.exists() and not (path.is_dir() and not _entries(path)):
        if not force:
            raise RunError(
                f"{path} already exists. Choose another run directory with -o, "
                "or replace this one with {force}.",
                FinetuneConfig,
            )
        _check_replaceable(path)
    return RunDirectory(path)


class OutputDirectory:
    """Exclusive ownership of a run directory.

    A replaced run is kept aside until the new one has a checkpoint.
    """

    def __init__(self, run: RunDirectory) -> None:
        """Lock the directory and empty it.

        Raises:
            RunError: the directory cannot be replaced, created or locked, or another process trains
                there.
        """
        self._path = run.path
        self._replaced_run: Path | None = None
        existed = run.path.exists()
        with ExitStack() as locks:
            try:
                if existed:
                    locks.enter_context(_lock_run(run))
                    _check_replaceable(run.path)
                    self._replaced_run = move_aside(run.path)
                run.path.mkdir(parents=True)
            except OSError as cause:
                # Nothing was created, so nothing is removed: the path may have the user's only copy.
                self._restore_replaced_run()
                verb = "replaced" if existed else "created"
                raise RunError(
                    f"{run.path} cannot be {verb} ({cause.strerror}). "
                    "Choose another run directory with -o."
                ) from cause
            try:
                locks.enter_context(_lock_run(run))
            except OSError as cause:
                shutil.rmtree(run.path, ignore_errors=True)
                self._restore_replaced_run()
                raise RunError(
                    f"{run.path} cannot be locked ({cause.strerror}). "
                    "Choose another run directory with -o."
                ) from cause
            self._locks = locks.pop_all()

    @classmethod
    @contextmanager
    def reopen(cls, run: RunDirectory) -> Iterator[Self]:
        """Lock the directory of a run to resume; its files do not change.

        Raises:
            RunError: another process trains there.
        """
        directory = cls.__new__(cls)
        directory._path = run.path
        # A run that a killed process had set aside.
        pattern = f".{run.path.name}.replaced-*/{run.path.name}"
        directory._replaced_run = next(iter(sorted(run.path.parent.glob(pattern))), None)
        with ExitStack() as directory._locks:
            directory._locks.enter_context(_lock_run(run))
            yield directory

    def commit(self) -> None:
        """Keep the new run and remove the replaced one."""
        if self._replaced_run is not None:
            shutil.rmtree(self._replaced_run.parent, ignore_errors=True)
        self._locks.close()

    def rollback(self) -> None:
        """Remove the new run and restore the replaced one."""
        shutil.rmtree(self._path, ignore_errors=True)
        self._restore_replaced_run()
        self._locks.close()

    def _restore_replaced_run(self) -> None:
        if self._replaced_run is not None:
            self._replaced_run.rename(self._path)
            self._replaced_run.parent.rmdir()
            self._replaced_run = None


def _lock_run(run: RunDirectory) -> AbstractContextManager[None]:
    in_use = RunError(
        f"Another process trains in {run.path}. Wait for it, or choose another run directory with -o."
    )
    return exclusive_lock(run.lock, in_use)


def _entries(path: Path) -> set[str]:
    # A lock file alone was left by a process killed right after it started.
    return {entry.name for entry in path.iterdir()} - {RunDirectory(path).lock.name}


def _check_replaceable(path: Path) -> None:
    not_a_run = f"{path} is not a run directory, so --force does not remove it"
    if not path.is_dir() or path.is_symlink():
        raise RunError(f"{not_a_run}. Choose another with -o.")
    if not _entries(path):
        return
    run = RunDirectory(path)
    content = read_json(run.config, RunError, f"{not_a_run}: its config.json")
    versions = content.get("versions")
    if not isinstance(versions, Mapping) or "edgetl" not in versions:
        raise RunError(f"{not_a_run}. Choose another with -o.")
    foreign_files = find_foreign_run_files(path)
    if foreign_files:
        raise RunError(
            f"{describe_foreign_files(path, foreign_files)}, so {{force}} does not remove it. "
            "Move them away, or choose another run directory with -o.",
            FinetuneConfig,
        )
