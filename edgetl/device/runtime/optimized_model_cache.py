"""Cache of optimized graphs, which onnxruntime loads without optimizing them again."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from edgetl.core.cache import get_cache_folder, prune_cache
from edgetl.core.files import atomic_path, sha256_file
from edgetl.device.hardware.info import cpu_flags, cpu_name
from edgetl.device.runtime.onnx_file import OnnxFileError, read_onnx_file

MAX_CACHE_BYTES = 2**30
"""Size limit of all optimized graphs on disk. The least recently used are removed first."""
_FOLDER, _FILE = "optimized-models", "model.ort"


def find_optimized_model(model: Path | bytes) -> Path | None:
    """Return the optimized graph of a model for this CPU and onnxruntime; write it if missing.

    It is in ORT format, which onnxruntime can map into memory: for MobileNetV2 in fp32 a session
    is created in a quarter of the time, from an optimized ONNX file in half of it. Its outputs are
    the same to the bit. It contains a layout of the weights for one instruction set, so the CPU is
    part of the key.

    Args:
        model: an ONNX file or its bytes.

    Returns:
        None if the cache folder is not writable, or if onnxruntime cannot load or write the model,
        or if the model stores weights in other files, which its hash does not cover.
    """
    try:
        digest = (
            hashlib.sha256(model).hexdigest() if isinstance(model, bytes) else sha256_file(model)
        )
        root = get_cache_folder() / _FOLDER
        path = root / f"{_environment_key()}-{digest[:32]}" / _FILE
        if not path.is_file():
            if isinstance(model, Path) and read_onnx_file(model).has_external_data:
                return None
            _write_optimized_model(model, path)
            prune_cache(root, MAX_CACHE_BYTES, keep={path.parent})
        # `prune_cache` removes the folders with the oldest time of use.
        os.utime(path.parent)
    except (OSError, OnnxFileError):
        return None
    return path if path.is_file() else None


def _environment_key() -> str:
    import onnxruntime

    environment = {
        "cpu": cpu_name(),
        "flags": sorted(cpu_flags()),
        "onnxruntime": onnxruntime.__version__,
    }
    return hashlib.sha256(json.dumps(environment).encode()).hexdigest()[:16]


def _write_optimized_model(model: Path | bytes, path: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # It warns that the file is only for this CPU.
    options.log_severity_level = 4
    options.add_session_config_entry("session.save_model_format", "ORT")
    content = model if isinstance(model, bytes) else str(model)
    with suppress(FileNotFoundError), atomic_path(path) as temporary:
        options.optimized_model_filepath = str(temporary)
        try:
            onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception:  # onnxruntime's exceptions share no base class
            # The caller loads the model itself, and reports what is wrong with it.
            temporary.unlink(missing_ok=True)
