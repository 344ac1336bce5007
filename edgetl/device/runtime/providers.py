"""Execution providers: their names, options, and order in a session."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "nv_tensorrt_rtx": "NvTensorRTRTXExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "vitisai": "VitisAIExecutionProvider",
    "nnapi": "NnapiExecutionProvider",
}
"""Short names to onnxruntime's names."""

CUDA_PROVIDERS = ("cuda", "tensorrt", "nv_tensorrt_rtx")
"""Providers on NVIDIA GPUs, with CUDA's libraries and inputs and outputs in GPU memory."""

_THREAD_COUNT_OPTIONS = {"openvino": "num_of_threads", "xnnpack": "intra_op_num_threads"}
"""Providers with their own thread pool, and the option for its size."""


@dataclass(frozen=True)
class EngineCache:
    """Folders in which TensorRT caches its engines and timings for other processes."""

    engine_folder: Path
    """Engines for one model file, GPU and set of versions."""
    timing_folder: Path
    """Kernel timings for one GPU and set of versions, shared by all model files."""


def provider_chain(
    provider: str,
    available: Collection[str],
    threads: int,
    precision: str | None = None,
    cache: EngineCache | None = None,
) -> list[tuple[str, dict[str, str]]]:
    """Return a session's providers in order of preference: (onnxruntime's name, options) each.

    TensorRT is followed by CUDA, which runs the nodes that TensorRT does not support (recommended
    on onnxruntime's page on TensorRT). The CPU is last, for shape arithmetic;
    `edgetl.device.runtime.placement` checks that no compute node runs on it.

    TensorRT computes in the precision of the file: fp16 kernels are allowed for fp16 variants only,
    int8 kernels for int8 variants only, so that an fp32 row is computed in fp32 (TF32 on tensor
    cores). TensorRT for RTX takes all types from the graph and has no such options.

    Args:
        provider: a short name of `PROVIDERS`.
        available: onnxruntime's names of the installed providers, which decide whether CUDA is
            added; `provider` itself is not checked.
        threads: size of a provider's own thread pool.
        precision: precision of the file as in a bundle (fp32, fp16, int8, ...); None for fp32.
        cache: TensorRT's cache folders; None disables the cache.
    """
    options: dict[str, str] = {}
    if provider in _THREAD_COUNT_OPTIONS:
        options[_THREAD_COUNT_OPTIONS[provider]] = str(threads)
    if provider == "tensorrt":
        options |= _tensorrt_options(precision or "fp32", cache)
    if provider == "nv_tensorrt_rtx" and cache is not None:
        options["nv_runtime_cache_path"] = str(cache.engine_folder)
    chain = [(PROVIDERS[provider], options)]
    if provider in CUDA_PROVIDERS and provider != "cuda" and PROVIDERS["cuda"] in available:
        chain.append((PROVIDERS["cuda"], {}))
    if provider != "cpu":
        chain.append((PROVIDERS["cpu"], {}))
    return chain


def _tensorrt_options(precision: str, cache: EngineCache | None) -> dict[str, str]:
    options = {
        "trt_fp16_enable": str(precision.startswith("fp16")),
        # TensorRT requires it for models with QuantizeLinear nodes (onnxruntime#13381).
        "trt_int8_enable": str(precision.startswith("int8")),
    }
    if cache is not None:
        options |= {
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(cache.engine_folder),
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": str(cache.timing_folder),
        }
    return options
