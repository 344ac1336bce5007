"""Bundle writer: write to a temporary directory and move it into place when complete."""

from __future__ import annotations

import io
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from edgetl.core.artifacts.bundle import BundleManifest, FileRecord, GoldenRecord, ImageSource
from edgetl.core.artifacts.foreign_files import describe_foreign_files, find_foreign_bundle_files
from edgetl.core.config.export import ExportConfig
from edgetl.core.errors import BundleError, ExportError
from edgetl.core.files import move_aside, read_json_of_kind, sha256_file
from edgetl.core.locks import exclusive_lock
from edgetl.core.paths import BundleDirectory
from edgetl.device.runtime.bundle import Bundle
from edgetl.device.runtime.classifier import open_variant, run_images


def write_ort(file: Path) -> FileRecord:
    """Write NAME.ort beside NAME.onnx and load it once.

    The optimization level is `extended`: its output runs on every machine, while higher levels
    choose memory layouts for this CPU.

    Raises:
        ExportError: onnxruntime cannot write the file or read it back.
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
            f"onnxruntime {onnxruntime.__version__} cannot write {file.name} in ORT format: "
            f"{cause} Omit {{ort_format}}.",
            ExportConfig,
        ) from cause
    return FileRecord(target.name, sha256_file(target), target.stat().st_size)


@dataclass(frozen=True)
class GoldenImages:
    """Golden images: reference images and logits that devices are checked against."""

    files: Sequence[Path]
    labels: Sequence[str]
    logits: NDArray[np.float32]
    """Logits of the PyTorch model, [images, classes]."""
    kind: ImageSource
    tolerance: float
    fixed_size_logits: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """Variant name to its logits for the images resized to its fixed size, [images, classes]."""


@contextmanager
def new_bundle(path: Path, force: bool) -> Iterator[BundleDirectory]:
    """Yield a temporary bundle directory that replaces `path` if the block ends without an error.

    At any time `path` is the old bundle, the new one or, for an instant, missing; never a mixture.
    After an error no files or new folders are left behind.

    Raises:
        BundleError: `path` exists and `force` is not set, `path` is not a bundle, another process
            is writing to it, or the disk is full.
    """
    replaces_bundle = _check_replaceable(path, force)
    new_parents = [parent for parent in path.parents if not parent.exists()]
    in_use = BundleError(
        f"Another process is writing a bundle to {path}. Wait for it, or choose another directory with -o."
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(path.parent / f".{path.name}.lock", in_use):
            # Another process may have written a bundle since the first check.
            replaces_bundle = _check_replaceable(path, force)
            temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
            try:
                temporary.chmod(0o755)
                yield BundleDirectory(temporary)
                _swap(temporary, path)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as cause:
        untouched = " The existing bundle is unchanged." if replaces_bundle else ""
        raise BundleError(
            f"The bundle cannot be written to {path} ({cause.strerror or cause}).{untouched} "
            "Free some disk space, or choose another directory with -o."
        ) from cause
    finally:
        for parent in new_parents:
            with suppress(OSError):  # the folder of a complete bundle is not empty
                parent.rmdir()


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


def _check_replaceable(path: Path, force: bool) -> bool:
    """Check that a bundle may be written to `path`; return whether it replaces another bundle.

    Raises:
        BundleError: the folder is not writable, `path` is a link, or it exists and must not be
            replaced.
    """
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK) or path.is_symlink():
        raise BundleError(
            f"A bundle cannot be written to {path}: it is a link, or its parent is a file or is not writable. "
            "Choose another directory with -o."
        )
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return False
    manifest = read_json_of_kind(BundleDirectory(path).manifest, "bundle")
    if manifest is None:
        raise BundleError(f"{path} exists and is not a bundle. Choose another directory with -o.")
    if not force:
        raise BundleError(
            f"The bundle {path} already exists. Replace it with {{force}}, or choose another directory with -o.",
            ExportConfig,
        )
    foreign = find_foreign_bundle_files(path, manifest)
    if foreign:
        raise BundleError(
            f"{describe_foreign_files(path, foreign)}, so {{force}} does not replace it. "
            "Move them away, or choose another directory with -o.",
            ExportConfig,
        )
    return True


def write_model(directory: BundleDirectory, name: str, model: onnx.ModelProto) -> Path:
    """Write one variant as a single file; equal models give equal bytes.

    Raises:
        ExportError: the file on disk is truncated.
    """
    path = directory.variant(name)
    content = model.SerializeToString(deterministic=True)
    path.write_bytes(content)
    on_disk = path.stat().st_size
    if on_disk != len(content):
        raise ExportError(
            f"{path.name} is truncated: {on_disk} of {len(content)} bytes are on disk. "
            "No bundle was written. Free some disk space."
        )
    return path


def read_back(file: Path) -> onnx.ModelProto:
    """Load a model from disk.

    Raises:
        ExportError: the file is truncated or damaged.
    """
    try:
        return onnx.load(file)
    except Exception as cause:  # protobuf's exceptions share no base class across its versions
        raise ExportError(
            f"{file.name} cannot be read back from disk ({file.stat().st_size} bytes): it is truncated or damaged. "
            "No bundle was written."
        ) from cause


def write_golden(directory: BundleDirectory, golden: GoldenImages) -> GoldenRecord:
    """Copy the golden images and write their logits."""
    directory.golden.mkdir()
    records = []
    for number, source in enumerate(golden.files):
        target = directory.golden / f"{number}_{re.sub(r'[^A-Za-z0-9._-]+', '_', source.name)}"
        shutil.copyfile(source, target)
        records.append(FileRecord(f"golden/{target.name}", sha256_file(target)))
    fixed_size_arrays = {
        f"logits_{name}": logits for name, logits in golden.fixed_size_logits.items()
    }
    _write_arrays(
        directory.golden_logits,
        files=np.array([record.file for record in records]),
        labels=np.array(golden.labels),
        logits=golden.logits,
        **fixed_size_arrays,
    )
    logits = FileRecord("golden/golden.npz", sha256_file(directory.golden_logits))
    return GoldenRecord(golden.kind, golden.tolerance, tuple(records), logits)


def record_unknown_scores(directory: BundleDirectory, manifest: BundleManifest) -> BundleManifest:
    """Add each variant's unknown scores for the golden images to golden.npz.

    Devices compare their scores with them.

    Args:
        directory: must contain the golden images and all files of the manifest's variants.
        manifest: manifest of the bundle.

    Returns:
        The manifest with the new hash; unchanged if no variant has unknown scores.
    """
    variants = [variant for variant in manifest.variants if variant.unknown is not None]
    if not variants:
        return manifest
    bundle = Bundle(directory, manifest)
    golden = bundle.load_golden()
    scores: dict[str, NDArray[Any]] = {}
    for variant in variants:
        classifier = open_variant(bundle, variant)
        outputs = run_images(classifier, golden.load_images(variant))
        assert outputs.unknown_scores is not None
        scores[f"unknown_score_{variant.name}"] = outputs.unknown_scores.astype(np.float32)
    with np.load(directory.golden_logits, allow_pickle=False) as archive:
        arrays = {**archive, **scores}
    _write_arrays(directory.golden_logits, **arrays)
    logits = FileRecord(manifest.golden.logits.file, sha256_file(directory.golden_logits))
    return replace(manifest, golden=replace(manifest.golden, logits=logits))


def _write_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    """Write an .npz file as numpy.savez does, but with a constant timestamp."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(
                zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), content.getvalue()
            )


def write_client(path: Path) -> FileRecord:
    """Copy the stand-alone client of this name."""
    path.write_bytes((files("edgetl.export.client") / path.name).read_bytes())
    return FileRecord(path.name, sha256_file(path))
