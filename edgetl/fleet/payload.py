"""Files sent to a device: edgetl as a wheel, the bundle and the job."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO

import edgetl
from edgetl.core.config.bench import BenchConfig
from edgetl.core.errors import BenchError
from edgetl.core.files import parse_json
from edgetl.core.paths import BundleDirectory
from edgetl.core.typed_json import parse_as

BASELINE_FILE = "baseline.json"
_ZIP_TIMESTAMP = (1980, 1, 1, 0, 0, 0)
_EXCLUDED_PARTS = ("_models", "__pycache__")
"""Parts of edgetl that are not sent: devices do not train, so they need no initial weights."""


def build_edgetl_wheel() -> tuple[str, bytes]:
    """Return file name and content of a wheel of this edgetl (PyPA's binary format 1.0).

    The wheel is built from the installed files, so the device runs the same code, including local
    changes of a checkout.

    Raises:
        BenchError: edgetl is only on the import path, not installed, so its dependencies are
            unknown.
    """
    try:
        installed = metadata.distribution("edgetl")
    except metadata.PackageNotFoundError as cause:
        raise BenchError(
            "edgetl must be installed here, to build a wheel from. Run `pip install` first."
        ) from cause
    package = Path(edgetl.__file__).parent
    dist_info = f"edgetl-{installed.version}.dist-info"
    entries = {
        path.relative_to(package.parent).as_posix(): path.read_bytes()
        for path in sorted(package.rglob("*"))
        if path.is_file() and not any(part in _EXCLUDED_PARTS for part in path.parts)
    }
    entries[f"{dist_info}/METADATA"] = (installed.read_text("METADATA") or "").encode()
    entries[f"{dist_info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: edgetl\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = "".join(
        f"{name},sha256={_digest(content)},{len(content)}\n" for name, content in entries.items()
    )
    entries[f"{dist_info}/RECORD"] = f"{record}{dist_info}/RECORD,,\n".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name, _ZIP_TIMESTAMP), content, zipfile.ZIP_DEFLATED)
    return f"edgetl-{installed.version}-py3-none-any.whl", buffer.getvalue()


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


class Payload:
    """Files for the devices, written as a tar stream to each of them."""

    def __init__(
        self,
        bundle: BundleDirectory,
        config: BenchConfig,
        extra: str,
        wheels: Path | None = None,
        baseline: Path | None = None,
    ) -> None:
        """Build the wheel and list the files.

        Args:
            bundle: the bundle, sent without its web page.
            config: options of `edgetl bench` on the device.
            extra: the extra of edgetl to install: `cpu` or `gpu`.
            wheels: a folder of wheels to install from; None means the device's own index.
            baseline: an earlier result to send along.

        Raises:
            BenchError: `wheels` contains no wheels, or edgetl is not installed here.
        """
        self._wheel_name, wheel = build_edgetl_wheel()
        job = {
            "wheel": self._wheel_name,
            "extra": extra,
            "wheels": wheels is not None,
        }
        self._generated_files: Mapping[str, bytes] = {
            f"wheel/{self._wheel_name}": wheel,
            "job.json": json.dumps(job).encode(),
            "config.json": json.dumps(config.to_json()).encode(),
            "agent.py": (Path(__file__).parent / "agent.py").read_bytes(),
        }
        root = bundle.path.resolve()
        web = bundle.web.resolve()
        self._copied_files: dict[str, Path] = {
            f"bundle/{path.relative_to(root).as_posix()}": path
            for path in sorted(root.rglob("*"))
            if path.is_file() and not path.is_relative_to(web)
        }
        if wheels is not None:
            self._copied_files |= {f"wheels/{path.name}": path for path in _list_wheels(wheels)}
        if baseline is not None:
            self._copied_files[BASELINE_FILE] = baseline

    def write(self, stream: IO[bytes]) -> None:
        """Write the files to `stream` as a tar archive."""
        with tarfile.open(fileobj=stream, mode="w|") as archive:
            for name, content in self._generated_files.items():
                archive.addfile(_tar_entry(name, len(content)), io.BytesIO(content))
            for name, path in self._copied_files.items():
                with path.open("rb") as source:
                    archive.addfile(_tar_entry(name, path.stat().st_size), source)


def _tar_entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size = size
    entry.mode = 0o644
    return entry


def _list_wheels(folder: Path) -> Iterator[Path]:
    wheels = sorted(folder.glob("*.whl")) if folder.is_dir() else []
    if not wheels:
        raise BenchError(
            f"No wheels found in {folder}. Download them for the device's platform: "
            "pip download --only-binary=:all: --platform manylinux_2_28_aarch64 "
            '-d wheels "edgetl[cpu]"'
        )
    yield from wheels


@dataclass(frozen=True)
class AgentReply:
    """Reply of the agent on a host: the step that begins, or the outcome of the bench."""

    step: str | None = None
    failed: str | None = None
    """Why the bench did not run."""
    status: int | None = None
    """Exit code of `edgetl bench`; None if it did not run."""
    result: Mapping[str, object] | None = None
    """Content of the result file; None if it was not written."""
    left: bool = False
    """Whether the agent could not remove its folder."""


def parse_reply(line: str) -> AgentReply | None:
    """Parse a reply of the agent; return None for other lines of its standard output.

    Raises:
        FieldError: a value of the reply has the wrong type.
    """
    try:
        content = parse_json(line)
    except ValueError:
        return None
    if not isinstance(content, dict) or "edgetl" not in content:
        return None
    return parse_as(AgentReply, content, "the reply", extra="ignore")
