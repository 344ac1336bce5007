"""Writing a bundle: beside its final place, and moved there only when it is whole."""

from __future__ import annotations

import fcntl
import io
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from edgetl.core.artifacts.foreign_files import (
    describe_foreign_files,
    find_foreign_bundle_files,
    read_manifest,
)
from edgetl.core.errors import BundleError, ExportError
from edgetl.core.files import move_aside, sha256_file, write_json
from edgetl.core.paths import BundleDirectory
from edgetl.device.runtime.bundle import Variant


def write_ort(file: Path) -> dict[str, Any]:
    """Write NAME.ort beside NAME.onnx and load it once; returns its entry for bundle.json.

    Optimised as far as every machine can run it (level `extended`): layouts of one CPU's caches stay out.

    Raises:
        ExportError: onnxruntime cannot write it or read it back.
    """
    target = file.with_suffix(".ort")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    options.add_session_config_entry("session.save_model_format", "ORT")
    try:
        onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    except Exception as cause:  # onnxruntime's exceptions share no base class
        raise ExportError(
            f"onnxruntime {onnxruntime.__version__} cannot write {file.name} in ORT format: {cause} Leave out --ort-format."
        ) from cause
    return {"file": target.name, "sha256": sha256_file(target), "bytes": target.stat().st_size}


@dataclass(frozen=True)
class GoldenImages:
    """What a device is checked against."""

    files: Sequence[Path]
    labels: Sequence[str]
    logits: NDArray[np.float32]
    """[images, classes] of the PyTorch model."""
    kind: str
    """`validation`, `training`, `given` or `generated`."""
    tolerance: float
    fixed_size_logits: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """The same for the images resized to the size of a variant of fixed size, by the variant's name."""


@contextmanager
def new_bundle(path: Path, force: bool) -> Iterator[BundleDirectory]:
    """Yield a temporary bundle directory that takes the place of `path` when the block ends without an error.

    At every moment `path` is the old bundle, the new one, or for an instant nothing; never a mixture.

    Raises:
        BundleError: `path` is there already and `force` is not set, or it is something else than a bundle, or another process is
            writing it, or the disk is full.
    """
    refuse_existing(path, force)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _hold_lock(path):
            # Another process may have put one there since.
            refuse_existing(path, force)
            temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
            try:
                temporary.chmod(0o755)
                yield BundleDirectory(temporary)
                _swap(temporary, path)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as cause:
        kept = " The bundle that was there is untouched." if BundleDirectory.exists_at(path) else ""
        raise BundleError(
            f"The bundle cannot be written to {path} ({cause.strerror or cause}).{kept} Make room there, or choose another place with -o."
        ) from cause


@contextmanager
def _hold_lock(path: Path) -> Iterator[None]:
    # The system lets go of the lock when its process dies, however that happens.
    lock = path.parent / f".{path.name}.lock"
    try:
        stream = _acquire_lock(lock)
    except BlockingIOError as cause:
        raise BundleError(
            f"Another process is writing a bundle to {path}. Wait for it, or choose another place with -o."
        ) from cause
    with stream:
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _acquire_lock(path: Path) -> IO[str]:
    while True:
        stream = path.open("a")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                return stream
        except FileNotFoundError:
            # A process that ends removes its lock: one that was opened just before locks nothing any more.
            pass
        except BaseException:
            stream.close()
            raise
        stream.close()


def _swap(new: Path, path: Path) -> None:
    if not path.exists():
        new.rename(path)
        return
    old = move_aside(path)
    try:
        new.rename(path)
    except BaseException:
        old.rename(path)
        old.parent.rmdir()
        raise
    shutil.rmtree(old.parent, ignore_errors=True)


def refuse_existing(path: Path, force: bool) -> None:
    """Raise BundleError when a bundle may not or cannot be written to `path`."""
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK) or path.is_symlink():
        raise BundleError(
            f"A bundle cannot be written to {path}: a file, a link or missing rights are in the way. Choose another with -o."
        )
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not path.is_dir() or read_manifest(BundleDirectory(path).manifest) is None:
        raise BundleError(f"{path} exists and is not a bundle. Choose another place with -o.")
    if not force:
        raise BundleError(
            f"There is a bundle at {path} already. --force replaces it, -o writes elsewhere."
        )
    foreign = find_foreign_bundle_files(path)
    if foreign:
        raise BundleError(
            f"{describe_foreign_files(path, foreign)}, so --force does not replace it. Move them away, or choose another place with -o."
        )


def write_model(directory: BundleDirectory, name: str, model: onnx.ModelProto) -> Path:
    """Write one variant as a single file; equal models give equal bytes."""
    path = directory.variant(name)
    content = model.SerializeToString(deterministic=True)
    path.write_bytes(content)
    on_disk = path.stat().st_size
    if on_disk != len(content):
        raise ExportError(
            f"{path.name} was cut short: {on_disk} of {len(content)} bytes are on the disk. Make room; no bundle was written."
        )
    return path


def read_back(file: Path) -> onnx.ModelProto:
    """The model as it lies on the disk.

    Raises:
        ExportError: it is not what was written.
    """
    try:
        return onnx.load(file)
    except Exception as cause:  # protobuf's exceptions share no base class across its versions
        raise ExportError(
            f"{file.name} cannot be read back from the disk: {file.stat().st_size} bytes, cut short or damaged. No bundle was written."
        ) from cause


def write_golden(directory: BundleDirectory, golden: GoldenImages) -> dict[str, Any]:
    """Copy the images, keep the logits; returns the manifest's `golden`."""
    directory.golden.mkdir()
    entries = []
    for number, source in enumerate(golden.files):
        target = directory.golden / f"{number}_{re.sub(r'[^A-Za-z0-9._-]+', '_', source.name)}"
        shutil.copyfile(source, target)
        entries.append({"file": f"golden/{target.name}", "sha256": sha256_file(target)})
    fixed = {f"logits_{name}": logits for name, logits in golden.fixed_size_logits.items()}
    names = np.array([entry["file"] for entry in entries])
    _write_arrays(
        directory.golden_logits,
        files=names,
        labels=np.array(golden.labels),
        logits=golden.logits,
        **fixed,
    )
    logits = {"file": "golden/golden.npz", "sha256": sha256_file(directory.golden_logits)}
    return {"kind": golden.kind, "tolerance": golden.tolerance, "images": entries, "logits": logits}


def _write_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    """As numpy.savez, without the time of day in it."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(
                zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), content.getvalue()
            )


def write_clients(directory: BundleDirectory) -> dict[str, dict[str, str]]:
    """Copy the stand-alone clients; returns their manifest entries."""
    copied = {"client": directory.client, "cpp_client": directory.cpp_client}
    for target in copied.values():
        target.write_bytes((files("edgetl.export.client") / target.name).read_bytes())
    return {
        key: {"file": target.name, "sha256": sha256_file(target)} for key, target in copied.items()
    }


def write_manifest(
    directory: BundleDirectory, variants: Sequence[Variant], content: dict[str, Any]
) -> None:
    """Write bundle.json, last of all."""
    write_json(
        directory.manifest,
        {"kind": "bundle", **content, "variants": [asdict(variant) for variant in variants]},
    )
