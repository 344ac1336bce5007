"""onnxruntime-web's two files that a page needs: from the cache, else from npm's registry."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path

from edgetl.core.cache import get_cache_folder
from edgetl.core.errors import ExportError
from edgetl.core.files import sha256_file

RUNTIME = "onnxruntime-web"
VERSION = "1.30.0"
SHA256 = {
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
"""The WebAssembly build without GPU, its JavaScript in one piece."""
_TIMEOUT_S = 600
_SKIP_WEB_ADVICE = "or export without --web."


def ensure_runtime_files() -> Path:
    """A folder with the files named in SHA256, each of them as pinned here.

    Raises:
        ExportError: they are not in the cache, and npm is not there or cannot fetch them; the message says what to do.
    """
    kept = get_cache_folder() / RUNTIME / VERSION
    if _is_complete(kept):
        return kept
    npm = shutil.which("npm")
    if npm is None:
        raise ExportError(
            f"--web needs {RUNTIME} {VERSION} once, and npm, which fetches it, is not installed. "
            f"Install npm (`apt install npm`), copy {kept} from a machine that has it, {_SKIP_WEB_ADVICE}"
        )
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=kept.parent) as folder:
            _fetch(npm, Path(folder), kept)
            new = Path(folder, "whole")
            if not _is_complete(new):
                raise ExportError(
                    f"What npm fetched as {RUNTIME} {VERSION} is not what edgetl was tested with: its SHA-256 differs. "
                    f"Ask whoever runs your npm registry, copy {kept} from a machine that has it, {_SKIP_WEB_ADVICE}"
                )
            _store_in_cache(new, kept)
    except OSError as cause:
        raise ExportError(
            f"{RUNTIME} cannot be kept in {kept} ({cause.strerror or cause}). Make room there, set $EDGETL_CACHE, {_SKIP_WEB_ADVICE}"
        ) from cause
    return kept


def _is_complete(folder: Path) -> bool:
    return all(
        (folder / name).is_file() and sha256_file(folder / name) == sha256
        for name, sha256 in SHA256.items()
    )


def _fetch(npm: str, folder: Path, kept: Path) -> None:
    """Leave the files in `folder`/whole; npm checks the archive against the registry's integrity itself."""
    command = [
        npm,
        "pack",
        f"{RUNTIME}@{VERSION}",
        "--ignore-scripts",
        "--prefer-offline",
        "--loglevel=error",
    ]
    # Its own default is to try for minutes where there is no network.
    command += [
        "--fetch-retries=1",
        "--fetch-retry-mintimeout=1000",
        "--fetch-retry-maxtimeout=2000",
    ]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
        said = done.stderr.splitlines() if done.returncode else []
    except subprocess.TimeoutExpired:
        said = [f"no answer in {_TIMEOUT_S} seconds"]
    archive = next(folder.glob("*.tgz"), None)
    if said or archive is None:
        reason = next(
            (line.rpartition("code ")[2] for line in said if " code " in line),
            said[0] if said else "it wrote no file",
        )
        raise ExportError(
            f"npm could not fetch {RUNTIME} {VERSION}, which --web needs once: {reason}. "
            f"Connect to npm's registry for this one export, copy {kept} from a machine that has it, {_SKIP_WEB_ADVICE}"
        )
    (folder / "whole").mkdir()
    with suppress(tarfile.TarError, KeyError), tarfile.open(archive) as package:
        for name in SHA256:
            if content := package.extractfile(f"package/dist/{name}"):
                (folder / "whole" / name).write_bytes(content.read())


def _store_in_cache(new: Path, kept: Path) -> None:
    if not _is_complete(kept):
        shutil.rmtree(kept, ignore_errors=True)
    try:
        new.rename(kept)
    except OSError:
        # Another process has put it there meanwhile.
        if not _is_complete(kept):
            raise
