"""Split wheels into small pieces with checksums, for a machine without a package index.

    python tools/checks/gpu_check/wheel_pieces.py download FOLDER   for Python 3.12, Linux x86-64
    python tools/checks/gpu_check/wheel_pieces.py split FOLDER PIECES
    python tools/checks/gpu_check/wheel_pieces.py join PIECES FOLDER

Wheels are not compressed again, which would gain only 0.1% (xz on 4 MB of onnxruntime-gpu 1.31.1).
`join` restores them byte for byte. It may be run after each new piece: it appends the available
pieces and prints the missing ones. `split` and `join` need only the standard library, `download`
needs pip.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PIECE_BYTES = 56 * 2**20
LIST = "wheels.json"
SUMS = "SHA256SUMS"
PACKAGES = (
    "onnxruntime-gpu==1.31.1",
    "albumentations==2.0.8",
    "albucore==0.0.24",
    "simsimd",
    "stringzilla",
    "pydantic",
    "pydantic-core",
    "annotated-types",
    "typing-inspection",
    "ImageHash==4.3.2",
    "PyWavelets",
    "typer==0.28.0",
)
"""Packages of edgetl's `train` extra that a machine with PyTorch, torchvision, onnx, OpenCV and
safetensors usually lacks."""
PYTHON = "3.12"
_GLIBC_MINORS = (39, 35, 34, 31, 28, 27, 24, 17)
"""glibc 2.x versions of manylinux tags; pip matches each tag exactly."""
PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in _GLIBC_MINORS),
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
)


def download(folder: Path, packages: Sequence[str], python: str = PYTHON) -> None:
    """Download the wheels of `packages` with pip, without dependencies, for Linux x86-64.

    Raises:
        SystemExit: pip cannot find a package.
    """
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    target = ["--no-deps", "--only-binary=:all:"]
    target += ["--implementation", "cp", "--python-version", python]
    platforms = [argument for name in PLATFORMS for argument in ("--platform", name)]
    process = subprocess.run([*pip, *target, *platforms, "-d", str(folder), *packages])
    if process.returncode:
        sys.exit("pip cannot download the wheels. See its output above.")


def split(wheels: Path, pieces: Path, piece_bytes: int = PIECE_BYTES) -> list[dict[str, Any]]:
    """Write each wheel of a folder as pieces of at most `piece_bytes`, with a list and checksums.

    Raises:
        SystemExit: the folder contains no wheel.
    """
    files = sorted(wheels.glob("*.whl"))
    if not files:
        sys.exit(f"No .whl file found in {wheels}.")
    pieces.mkdir(parents=True, exist_ok=True)
    entries = [_split_wheel(file, pieces, piece_bytes) for file in files]
    (pieces / LIST).write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    sums = [
        f"{piece['sha256']}  {piece['file']}\n" for entry in entries for piece in entry["pieces"]
    ]
    (pieces / SUMS).write_text("".join(sums), encoding="utf-8")
    return entries


def _split_wheel(file: Path, pieces: Path, piece_bytes: int) -> dict[str, Any]:
    parts = []
    with file.open("rb") as stream:
        for number, content in enumerate(iter(lambda: stream.read(piece_bytes), b"")):
            name = f"{file.name}.{number:03d}"
            (pieces / name).write_bytes(content)
            digest = hashlib.sha256(content).hexdigest()
            parts.append({"file": name, "bytes": len(content), "sha256": digest})
    return {
        "wheel": file.name,
        "bytes": file.stat().st_size,
        "sha256": _sha256(file),
        "pieces": parts,
    }


def join(pieces: Path, wheels: Path) -> list[str]:
    """Restore the wheels whose pieces are all available and return the names of the missing pieces.

    A piece may be deleted once it was joined: its content is in the incomplete wheel in `wheels`.

    Raises:
        SystemExit: a piece or a wheel does not match its checksum.
    """
    wheels.mkdir(parents=True, exist_ok=True)
    missing: list[str] = []
    for entry in json.loads((pieces / LIST).read_text(encoding="utf-8")):
        missing += _join_wheel(entry, pieces, wheels)
    return missing


def _join_wheel(entry: dict[str, Any], pieces: Path, wheels: Path) -> list[str]:
    wheel = wheels / entry["wheel"]
    if wheel.exists() and _sha256(wheel) == entry["sha256"]:
        return []
    partial = wheels / f"{entry['wheel']}.joining"
    remaining = list(entry["pieces"])
    excess_bytes = partial.stat().st_size if partial.exists() else 0
    while remaining and excess_bytes >= remaining[0]["bytes"]:
        excess_bytes -= remaining.pop(0)["bytes"]
    if excess_bytes:
        # An interrupted `join` wrote part of a piece: drop that part and append the piece again.
        complete_bytes = partial.stat().st_size - excess_bytes
        with partial.open("r+b") as stream:
            stream.truncate(complete_bytes)
    while remaining and (pieces / remaining[0]["file"]).exists():
        piece = remaining.pop(0)
        content = (pieces / piece["file"]).read_bytes()
        if hashlib.sha256(content).hexdigest() != piece["sha256"]:
            sys.exit(
                f"{piece['file']} is damaged: its SHA-256 does not match {LIST}. Copy it again."
            )
        with partial.open("ab") as stream:
            stream.write(content)
    if remaining:
        return [piece["file"] for piece in remaining]
    if _sha256(partial) != entry["sha256"]:
        partial.unlink()
        sys.exit(f"{wheel.name} does not match its SHA-256. Join all of its pieces again.")
    partial.replace(wheel)
    return []


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the three commands; `join` returns 1 while pieces are missing."""
    description, _, usage = str(__doc__).partition("\n")
    parser = argparse.ArgumentParser(
        description=description,
        epilog=usage,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=("download", "split", "join"))
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument(
        "--package",
        action="append",
        help="download this package instead of the default ones (repeatable)",
    )
    parser.add_argument(
        "--python",
        default=PYTHON,
        help=f"Python version of the downloaded wheels (default: {PYTHON})",
    )
    options = parser.parse_args(arguments)
    if len(options.folders) != (1 if options.command == "download" else 2):
        parser.error("download needs one folder, split and join need two")
    if options.command == "download":
        download(options.folders[0], options.package or PACKAGES, options.python)
        return 0
    if options.command == "split":
        entries = split(*options.folders)
        count = sum(len(entry["pieces"]) for entry in entries)
        print(f"{len(entries)} wheels in {count} pieces.")
        return 0
    missing = join(*options.folders)
    print(f"Missing pieces: {', '.join(missing)}." if missing else "All wheels are complete.")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
