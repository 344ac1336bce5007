"""Download of onnxruntime-web: the two files of the page, from the cache or from npm's registry."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path

from edgetl.core.cache import get_cache_folder
from edgetl.core.config.export import ExportConfig
from edgetl.core.errors import ExportError
from edgetl.core.files import sha256_file

RUNTIME = "onnxruntime-web"
VERSION = "1.30.0"
SHA256 = {
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
"""SHA-256 of the WebAssembly build without GPU support and its bundled JavaScript."""
_TIMEOUT_S = 600
_SKIP_WEB_ADVICE = "or export without {web}."


def ensure_runtime_files() -> Path:
    """Return a folder with the files listed in SHA256, downloading them if necessary.

    Raises:
        ExportError: the files are not cached, and npm is not installed or cannot download them.
    """
    cached = get_cache_folder() / RUNTIME / VERSION
    if _is_complete(cached):
        return cached
    npm = shutil.which("npm")
    if npm is None:
        raise ExportError(
            f"{{web}} downloads {RUNTIME} {VERSION} once with npm, which is not installed. "
            f"Install npm (`apt install npm`), copy {cached} from another machine, {_SKIP_WEB_ADVICE}",
            ExportConfig,
        )
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=cached.parent) as folder:
            extracted = _download(npm, Path(folder), cached)
            if not _is_complete(extracted):
                raise ExportError(
                    f"The SHA-256 of {RUNTIME} {VERSION} from npm does not match the tested version. "
                    f"Check your npm registry, copy {cached} from another machine, {_SKIP_WEB_ADVICE}",
                    ExportConfig,
                )
            _store_in_cache(extracted, cached)
    except OSError as cause:
        raise ExportError(
            f"Cannot write {RUNTIME} to {cached} ({cause.strerror or cause}). "
            f"Free some disk space, set $EDGETL_CACHE, {_SKIP_WEB_ADVICE}",
            ExportConfig,
        ) from cause
    return cached


def _is_complete(folder: Path) -> bool:
    return all(
        (folder / name).is_file() and sha256_file(folder / name) == sha256
        for name, sha256 in SHA256.items()
    )


def _download(npm: str, folder: Path, cached: Path) -> Path:
    """Download to `folder` and return the subfolder with the extracted files.

    npm checks the archive against the registry's integrity value.
    """
    command = [
        npm,
        "pack",
        f"{RUNTIME}@{VERSION}",
        "--ignore-scripts",
        "--prefer-offline",
        "--loglevel=error",
    ]
    # Without network, npm would by default retry for minutes.
    command += [
        "--fetch-retries=1",
        "--fetch-retry-mintimeout=1000",
        "--fetch-retry-maxtimeout=2000",
    ]
    try:
        process = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
        error_lines = process.stderr.splitlines() if process.returncode else []
    except subprocess.TimeoutExpired:
        error_lines = [f"no response within {_TIMEOUT_S} seconds"]
    archive = next(folder.glob("*.tgz"), None)
    if error_lines or archive is None:
        first_line = error_lines[0] if error_lines else "it wrote no file"
        codes = (line.rpartition("code ")[2] for line in error_lines if " code " in line)
        raise ExportError(
            f"npm cannot download {RUNTIME} {VERSION} for {{web}}: {next(codes, first_line)}. "
            f"Connect to npm's registry for this export, copy {cached} from another machine, {_SKIP_WEB_ADVICE}",
            ExportConfig,
        )
    extracted = folder / "extracted"
    extracted.mkdir()
    with suppress(tarfile.TarError, KeyError), tarfile.open(archive) as package:
        for name in SHA256:
            if content := package.extractfile(f"package/dist/{name}"):
                (extracted / name).write_bytes(content.read())
    return extracted


def _store_in_cache(extracted: Path, cached: Path) -> None:
    if not _is_complete(cached):
        shutil.rmtree(cached, ignore_errors=True)
    try:
        extracted.rename(cached)
    except OSError:
        # Another process may have stored the files in the meantime.
        if not _is_complete(cached):
            raise
