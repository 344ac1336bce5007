"""The run directory's place: free, or freed because the user said so; never a stranger's folder."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from edgetl.core.errors import RunError
from edgetl.core.files import read_json
from edgetl.core.layout import RunDirectory, free_name


def choose_output(output: Path | None, data: Path, model: str, force: bool) -> RunDirectory:
    """The run directory to write; nothing is created or removed yet.

    Raises:
        RunError: the place is taken, or lies inside the data folder, where a later run would take it for a class.
    """
    data = data.expanduser().absolute()
    path = (output.expanduser() if output else free_name(Path("runs"), f"{data.resolve().name}-{model}")).absolute()
    if path.resolve() == data.resolve() or data.resolve() in path.resolve().parents:
        raise RunError(f"The run directory {path} would lie inside the data folder {data}. Choose another with -o.")
    if path.resolve() in data.resolve().parents:
        raise RunError(f"The data folder {data} lies inside {path}. Choose another run directory with -o.")
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        if not force:
            raise RunError(f"{path} exists already. Choose another run directory with -o, or replace this one with --force.")
        _check_replaceable(path)
    return RunDirectory(path)


class Place:
    """The place of a new run; an older one that it replaces lies aside until the new one has something to show."""

    def __init__(self, run: RunDirectory) -> None:
        """Make the place empty.

        Raises:
            RunError: it is not replaceable after all, or cannot be created.
        """
        self._path = run.path
        self._older: Path | None = None
        try:
            if run.path.exists():
                _check_replaceable(run.path)
                aside = Path(tempfile.mkdtemp(prefix=f".{run.path.name}.replaced-", dir=run.path.parent))
                self._older = run.path.rename(aside / run.path.name)
            run.path.mkdir(parents=True)
        except OSError as cause:
            self.give_back()
            raise RunError(f"{run.path} cannot be created ({cause.strerror}). Choose another run directory with -o.") from cause

    def keep(self) -> None:
        """The new run stays; the older one is removed."""
        if self._older is not None:
            shutil.rmtree(self._older.parent, ignore_errors=True)

    def give_back(self) -> None:
        """The new run came to nothing: it is removed, and the older one is where it was."""
        shutil.rmtree(self._path, ignore_errors=True)
        if self._older is not None:
            self._older.rename(self._path)
            self._older.parent.rmdir()


def _check_replaceable(path: Path) -> None:
    if not path.is_dir() or path.is_symlink():
        raise RunError(f"{path} is not a run directory, so --force does not remove it. Choose another with -o.")
    entries = {entry.name for entry in path.iterdir()}
    if not entries:
        return
    run = RunDirectory(path)
    content = read_json(run.config, RunError, f"{path} is not a run directory, so --force does not remove it: its config.json")
    if "edgetl" not in content.get("versions", {}):
        raise RunError(f"{path} is not a run directory, so --force does not remove it. Choose another with -o.")
    files = (run.config, run.split, run.rejected, run.weights, run.history, run.metrics, run.predictions, run.report)
    own = {known.name for known in (*files, run.plots, run.bundle, run.bench)}
    strangers = sorted(name for name in entries - own - {"checkpoint"} if not name.startswith("."))
    if strangers:
        raise RunError(
            f"{path} holds files that edgetl did not write ({', '.join(strangers[:5])}), so --force does not remove it. "
            "Move them away, or choose another run directory with -o."
        )
