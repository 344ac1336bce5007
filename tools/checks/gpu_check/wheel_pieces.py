"""Wheels for a machine without a package index, in small pieces with checksums.

    python tools/checks/gpu_check/wheel_pieces.py download FOLDER   wheels for Python 3.12 on Linux x86-64
    python tools/checks/gpu_check/wheel_pieces.py split FOLDER PIECES
    python tools/checks/gpu_check/wheel_pieces.py join PIECES FOLDER

A wheel is cut as it is: compressing it again gains 0.1% (xz on 4 MB of onnxruntime-gpu 1.31.1). `join` restores it byte
for byte, and may be called after each piece has come: it appends to what is there, and says what is still missing.
`split` and `join` need the standard library alone, `download` pip.
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
"""What a machine with PyTorch, torchvision, onnx, OpenCV and safetensors usually lacks for edgetl's `train` extra."""
PYTHON = "3.12"
_GLIBC_MINORS = (39, 35, 34, 31, 28, 27, 24, 17)
"""pip matches each of them exactly."""
PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in _GLIBC_MINORS),
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
)


def download(folder: Path, packages: Sequence[str], python: str = PYTHON) -> None:
    """Let pip fetch the wheels of `packages`, without dependencies, for Linux x86-64.

    Raises:
        SystemExit: pip finds one of them nowhere.
    """
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    target = [
        "--no-deps",
        "--only-binary=:all:",
        "--implementation",
        "cp",
        "--python-version",
        python,
    ]
    platforms = [argument for name in PLATFORMS for argument in ("--platform", name)]
    done = subprocess.run([*pip, *target, *platforms, "-d", str(folder), *packages])
    if done.returncode:
        sys.exit("pip could not download the wheels.")


def split(wheels: Path, pieces: Path, piece_bytes: int = PIECE_BYTES) -> list[dict[str, Any]]:
    """Write each wheel of a folder as pieces of at most `piece_bytes`, with a list and their checksums.

    Raises:
        SystemExit: there is no wheel.
    """
    files = sorted(wheels.glob("*.whl"))
    if not files:
        sys.exit(f"There is no .whl file in {wheels}.")
    pieces.mkdir(parents=True, exist_ok=True)
    entries = [_split_one(file, pieces, piece_bytes) for file in files]
    (pieces / LIST).write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    sums = [
        f"{piece['sha256']}  {piece['file']}\n" for entry in entries for piece in entry["pieces"]
    ]
    (pieces / SUMS).write_text("".join(sums), encoding="utf-8")
    return entries


def _split_one(file: Path, pieces: Path, piece_bytes: int) -> dict[str, Any]:
    parts = []
    with file.open("rb") as stream:
        for number, content in enumerate(iter(lambda: stream.read(piece_bytes), b"")):
            name = f"{file.name}.{number:03d}"
            (pieces / name).write_bytes(content)
            digest = hashlib.sha256(content).hexdigest()
            parts.append({"file": name, "bytes": len(content), "sha256": digest})
    whole = {"wheel": file.name, "bytes": file.stat().st_size, "sha256": _sha256(file)}
    return {**whole, "pieces": parts}


def join(pieces: Path, wheels: Path) -> list[str]:
    """Restore every wheel whose pieces are all there; returns the names of the pieces that are still missing.

    A piece may be taken away once it was joined: what it held is kept in `wheels` until its wheel is whole.

    Raises:
        SystemExit: a piece or a wheel is not what its checksum says.
    """
    wheels.mkdir(parents=True, exist_ok=True)
    missing: list[str] = []
    for entry in json.loads((pieces / LIST).read_text(encoding="utf-8")):
        missing += _join_one(entry, pieces, wheels)
    return missing


def _join_one(entry: dict[str, Any], pieces: Path, wheels: Path) -> list[str]:
    wheel = wheels / entry["wheel"]
    if wheel.exists() and _sha256(wheel) == entry["sha256"]:
        return []
    growing = wheels / f"{entry['wheel']}.joining"
    waiting = list(entry["pieces"])
    there = growing.stat().st_size if growing.exists() else 0
    while waiting and there >= waiting[0]["bytes"]:
        there -= waiting.pop(0)["bytes"]
    if there:
        # A joining that was cut short: its last piece is appended again.
        whole = growing.stat().st_size - there
        with growing.open("r+b") as stream:
            stream.truncate(whole)
    while waiting and (pieces / waiting[0]["file"]).exists():
        piece = waiting.pop(0)
        content = (pieces / piece["file"]).read_bytes()
        if hashlib.sha256(content).hexdigest() != piece["sha256"]:
            sys.exit(
                f"{piece['file']} is damaged: its SHA-256 is not the one in {LIST}. Copy it again."
            )
        with growing.open("ab") as stream:
            stream.write(content)
    if waiting:
        return [piece["file"] for piece in waiting]
    if _sha256(growing) != entry["sha256"]:
        growing.unlink()
        sys.exit(f"{wheel.name} is not the wheel that was split. Join all of its pieces again.")
    growing.replace(wheel)
    return []


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the three commands; `join` ends with status 1 while pieces are missing."""
    description, _, usage = str(__doc__).partition("\n")
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, epilog=usage, formatter_class=kind)
    parser.add_argument("command", choices=("download", "split", "join"))
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument(
        "--package", action="append", help="for download, instead of the usual ones; repeat it"
    )
    parser.add_argument(
        "--python", default=PYTHON, help=f"for download: a version of Python ({PYTHON})"
    )
    options = parser.parse_args(arguments)
    if len(options.folders) != (1 if options.command == "download" else 2):
        parser.error("download takes one folder; split and join take two")
    if options.command == "download":
        download(options.folders[0], options.package or PACKAGES, options.python)
        return 0
    if options.command == "split":
        entries = split(*options.folders)
        count = sum(len(entry["pieces"]) for entry in entries)
        print(f"{len(entries)} wheels in {count} pieces.")
        return 0
    missing = join(*options.folders)
    print(f"Still missing: {', '.join(missing)}." if missing else "All wheels are whole.")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
