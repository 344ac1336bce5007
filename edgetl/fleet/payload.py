"""What a device is sent: edgetl as a wheel, the bundle, and the job."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import edgetl
from edgetl.core.errors import BenchError
from edgetl.core.files import parse_json
from edgetl.core.paths import BundleDirectory

_ZIP_TIMESTAMP = (1980, 1, 1, 0, 0, 0)
_EXCLUDED_PARTS = ("_models", "__pycache__")
"""Weights to begin a training with: no device trains."""


def build_edgetl_wheel() -> tuple[str, bytes]:
    """File name and content of a wheel (PyPA's binary distribution format, version 1.0) of the edgetl that runs here.

    It is packed from the installed files, so that the device measures by the same code, a checkout's own changes included.

    Raises:
        BenchError: edgetl is not installed, only found on a path; nobody knows then what it depends on.
    """
    try:
        installed = metadata.distribution("edgetl")
    except metadata.PackageNotFoundError as cause:
        raise BenchError(
            "--host sends edgetl as a wheel, and this one is not installed: `pip install` it first."
        ) from cause
    package = Path(edgetl.__file__).parent
    about = f"edgetl-{installed.version}.dist-info"
    entries = {
        path.relative_to(package.parent).as_posix(): path.read_bytes()
        for path in sorted(package.rglob("*"))
        if path.is_file() and not any(part in _EXCLUDED_PARTS for part in path.parts)
    }
    entries[f"{about}/METADATA"] = (installed.read_text("METADATA") or "").encode()
    entries[f"{about}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: edgetl\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = "".join(
        f"{name},sha256={_digest(content)},{len(content)}\n" for name, content in entries.items()
    )
    entries[f"{about}/RECORD"] = f"{record}{about}/RECORD,,\n".encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name, _ZIP_TIMESTAMP), content, zipfile.ZIP_DEFLATED)
    return f"edgetl-{installed.version}-py3-none-any.whl", packed.getvalue()


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


class Payload:
    """All that a device needs, written as one tar stream as often as there are devices."""

    def __init__(
        self,
        bundle: BundleDirectory,
        arguments: Sequence[str],
        extra: str,
        wheels: Path | None = None,
        baseline: Path | None = None,
    ) -> None:
        """Args:
            bundle: its page for browsers stays here.
            arguments: of `edgetl bench`, after the bundle.
            extra: `cpu` or `gpu`, of edgetl.
            wheels: a folder of wheels to install from; None takes the device's own index.
            baseline: an earlier result to send along.

        Raises:
            BenchError: there are no wheels in `wheels`, or edgetl is not installed here.
        """
        self._wheel_name, content = build_edgetl_wheel()
        job = {
            "wheel": self._wheel_name,
            "extra": extra,
            "arguments": list(arguments),
            "wheels": wheels is not None,
        }
        self._generated_files: Mapping[str, bytes] = {
            f"wheel/{self._wheel_name}": content,
            "job.json": json.dumps(job).encode(),
            "agent.py": (Path(__file__).parent / "agent.py").read_bytes(),
        }
        web = bundle.web.resolve()
        found = (
            path
            for path in sorted(bundle.path.resolve().rglob("*"))
            if path.is_file() and not path.is_relative_to(web)
        )
        self._copied_files: dict[str, Path] = {
            f"bundle/{path.relative_to(bundle.path.resolve()).as_posix()}": path for path in found
        }
        if wheels is not None:
            self._copied_files |= {f"wheels/{path.name}": path for path in _list_wheels(wheels)}
        if baseline is not None:
            self._copied_files["baseline.json"] = baseline

    def write(self, stream: IO[bytes]) -> None:
        """Write the tar archive."""
        with tarfile.open(fileobj=stream, mode="w|") as archive:
            for name, content in self._generated_files.items():
                archive.addfile(_tar_entry(name, len(content)), io.BytesIO(content))
            for name, path in self._copied_files.items():
                with path.open("rb") as source:
                    archive.addfile(_tar_entry(name, path.stat().st_size), source)


def _tar_entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o644
    return entry


def _list_wheels(folder: Path) -> Iterator[Path]:
    found = sorted(folder.glob("*.whl")) if folder.is_dir() else []
    if not found:
        raise BenchError(
            f"--wheels {folder} holds no wheels. Fill it where there is a network, with the device's own platform: "
            'pip download --only-binary=:all: --platform manylinux_2_28_aarch64 -d wheels "edgetl[cpu]"'
        )
    yield from found


def parse_reply(line: str) -> dict[str, Any] | None:
    """What the device's side says in a line of its standard output; None where it is something else's word."""
    try:
        content = parse_json(line)
    except ValueError:
        return None
    return content if isinstance(content, dict) and "edgetl" in content else None
