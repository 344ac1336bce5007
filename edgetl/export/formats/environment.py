"""Python environments of converters whose packages conflict with those of edgetl.

An environment is made once and kept in the cache folder. A converter runs there as a stand-alone
script that exchanges files with edgetl.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgetl.core.cache import get_cache_folder
from edgetl.core.config.export import ExportConfig
from edgetl.core.errors import ExportError
from edgetl.core.files import write_json
from edgetl.core.locks import exclusive_lock
from edgetl.core.paths import StrPath
from edgetl.core.progress import ProgressCallback

_MARKER = "complete.json"
_INSTALL_TIMEOUT_S = 3600
_POLL_S = 0.5


@dataclass(frozen=True)
class ConverterEnvironment:
    """Environment of a converter: `prepare` it, then `run` scripts in it."""

    name: str
    """Name of the converter, which starts the name of its folder."""
    requirements: tuple[str, ...]
    """Pinned requirements, such as `executorch==1.5.1`."""

    @property
    def folder(self) -> Path:
        """Folder of the environment; other requirements or another Python have another folder."""
        interpreter = f"{sys.version_info.major}.{sys.version_info.minor}-{platform.machine()}"
        key = json.dumps([interpreter, *self.requirements])
        digest = hashlib.sha256(key.encode()).hexdigest()[:12]
        return get_cache_folder() / "converters" / f"{self.name}-{digest}"

    @property
    def python(self) -> Path:
        """Interpreter of the environment."""
        return self.folder / "bin" / "python"

    @property
    def is_complete(self) -> bool:
        """Whether everything is installed. The Python it was made with may be gone since."""
        return (self.folder / _MARKER).is_file() and self.python.is_file()

    def prepare(self, wheels: Path | None, progress: ProgressCallback) -> None:
        """Install the requirements unless they are installed.

        Args:
            wheels: folder of wheels to install from, without network; None uses pip's index.
            progress: called before an installation.

        Raises:
            ExportError: the environment cannot be made. The next call starts anew.
        """
        if self.is_complete:
            return
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with _wait_for_lock(self.folder.with_suffix(".lock")):
                # Another process may have completed it in the meantime.
                if not self.is_complete:
                    progress(f"Installing {' '.join(self.requirements)} in {self.folder}", 0, 0)
                    self._create(wheels)
        except OSError as cause:
            raise ExportError(
                f"The environment of the {self.name} converter cannot be written to {self.folder} "
                f"({cause.strerror or cause}). Free some disk space or set $EDGETL_CACHE."
            ) from cause

    def run(self, script: Path, arguments: Sequence[StrPath]) -> str:
        """Run a script in the environment and return its standard output.

        Variables such as PYTHONPATH, which could bring in edgetl's packages, have no effect.

        Raises:
            ExportError: the script failed; the message ends with its last line.
        """
        process = subprocess.run(
            [self.python, "-I", script, *arguments], capture_output=True, text=True, check=False
        )
        if process.returncode:
            lines = process.stderr.strip().splitlines() or ["it printed nothing"]
            raise ExportError(
                f"The {self.name} converter ended with code {process.returncode}: {lines[-1]}"
            )
        return process.stdout

    def _create(self, wheels: Path | None) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        try:
            self._call([sys.executable, "-m", "venv", str(self.folder)], "Python cannot create it")
            source = [] if wheels is None else ["--no-index", "--find-links", str(wheels)]
            pip = [str(self.python), "-I", "-m", "pip", "--disable-pip-version-check", "--no-input"]
            self._call([*pip, "install", "--quiet", *source, *self.requirements], "pip failed")
            write_json(self.folder / _MARKER, {"requirements": list(self.requirements)})
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def _call(self, command: Sequence[str], problem: str) -> None:
        try:
            process = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=_INSTALL_TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            reason = f"no result within {_INSTALL_TIMEOUT_S} seconds"
        else:
            if not process.returncode:
                return
            reason = _select_reason(process.stdout + process.stderr)
        requirements = " ".join(self.requirements)
        raise ExportError(
            f"The environment of the {self.name} converter cannot be made: {problem} ({reason}). "
            f"Connect to a package index, or fetch the packages on another machine with "
            f"`pip download -d wheels {requirements}` and give the folder as {{wheels}}.",
            ExportConfig,
        )


@contextmanager
def _wait_for_lock(path: Path) -> Iterator[None]:
    """Hold a lock file, after the processes that hold it before."""
    while True:
        try:
            with exclusive_lock(path, _LockedError()):
                yield
                return
        except _LockedError:
            time.sleep(_POLL_S)


class _LockedError(Exception):
    """Another process or thread holds the lock."""


def _select_reason(output: str) -> str:
    """Return the last error line of pip, or else the last line."""
    lines = output.strip().splitlines() or ["it printed nothing"]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines)[-1].removeprefix("ERROR:").strip()
