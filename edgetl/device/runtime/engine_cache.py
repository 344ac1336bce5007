"""Cache folders for TensorRT's engines: one for each model file, GPU and set of versions."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

from edgetl.core.cache import get_cache_folder, prune_cache
from edgetl.core.files import sha256_file
from edgetl.device.hardware.info import gpu_identity, installed_version
from edgetl.device.runtime.cuda_libraries import preload_cuda_libraries
from edgetl.device.runtime.providers import EngineCache

MAX_CACHE_BYTES = 4 * 2**30
"""Size limit of all engines on disk. The least recently used are removed first."""


def open_engine_cache(model: Path | bytes, provider: str) -> EngineCache | None:
    """Create the folders for a model's engines; None if the cache folder is not writable.

    onnxruntime names an engine's file after the model's file name and the names in its graph, not
    after its weights (`TRTGenerateId` in its source). Two models of one architecture, fine-tuned on
    different images, would share an engine; the hash of the file separates them.

    Args:
        model: an ONNX file or its bytes.
        provider: `tensorrt` or `nv_tensorrt_rtx`.
    """
    digest = hashlib.sha256(model).hexdigest() if isinstance(model, bytes) else sha256_file(model)
    root = get_cache_folder() / provider
    folders = cache_paths(root, digest, collect_engine_versions(provider))
    try:
        for folder in (folders.engine_folder, folders.timing_folder):
            folder.mkdir(parents=True, exist_ok=True)
            # `prune_cache` removes the folders with the oldest time of use.
            os.utime(folder)
    except OSError:
        return None
    prune_cache(root, MAX_CACHE_BYTES, keep={folders.engine_folder, folders.timing_folder})
    return folders


def cache_paths(root: Path, digest: str, environment: Mapping[str, str | None]) -> EngineCache:
    """Return the cache folders.

    Args:
        root: the provider's cache folder.
        digest: SHA-256 of the model file.
        environment: see `collect_engine_versions`.
    """
    encoded = json.dumps(dict(environment), sort_keys=True).encode()
    key = hashlib.sha256(encoded).hexdigest()[:16]
    return EngineCache(root / f"engines-{key}-{digest[:16]}", root / f"timings-{key}")


def collect_engine_versions(provider: str) -> dict[str, str | None]:
    """Return the GPU and the versions that an engine depends on: driver, onnxruntime, TensorRT."""
    import onnxruntime

    gpu, driver = gpu_identity()
    library = "libtensorrt_rtx.so" if provider == "nv_tensorrt_rtx" else "libnvinfer.so.10"
    return {
        "gpu": gpu,
        "driver": driver,
        "onnxruntime": onnxruntime.__version__,
        "tensorrt": tensorrt_version(library),
    }


@cache
def tensorrt_version(library: str) -> str | None:
    """Return TensorRT's version from its library (`getInferLibVersion`) or its package, or None."""
    preload_cuda_libraries()
    with suppress(OSError, AttributeError):
        return str(ctypes.CDLL(library).getInferLibVersion())
    packages = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "onnxruntime-trt-rtx")
    return next((version for name in packages if (version := installed_version(name))), None)
