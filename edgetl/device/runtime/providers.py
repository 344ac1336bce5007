"""Execution providers: their names, the chain that a session is given, and the options of each."""

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
}
"""The names that users type, and onnxruntime's own."""

CUDA_PROVIDERS = ("cuda", "tensorrt", "nv_tensorrt_rtx")
"""Those that run on an NVIDIA GPU, link to CUDA's libraries and keep inputs and outputs in its memory."""

_THREAD_COUNT_OPTIONS = {"openvino": "num_of_threads", "xnnpack": "intra_op_num_threads"}
"""Providers with a thread pool of their own, and the option that sizes it."""


@dataclass(frozen=True)
class EngineCache:
    """Folders in which TensorRT keeps what it built, so that another process need not build it again."""

    engine_folder: Path
    """For one file, one GPU and one set of versions."""
    timing_folder: Path
    """Kernel timings, for one GPU and one set of versions: shared by all files."""


def provider_chain(
    provider: str,
    available: Collection[str],
    threads: int,
    precision: str | None = None,
    cache: EngineCache | None = None,
) -> list[tuple[str, dict[str, str]]]:
    """Return the providers of a session in order of preference, by onnxruntime's names, each with its options.

    Behind TensorRT stands CUDA, which takes the nodes that TensorRT does not support (onnxruntime's page on TensorRT recommends
    it); the CPU is last, for arithmetic on shapes. That no compute node ends there is checked by `edgetl.device.runtime.placement`.

    TensorRT computes in the precision of the file: fp16 kernels are allowed for an fp16 variant and no other, int8 kernels for an
    int8 one. A row that says fp32 is then computed in fp32 (TF32 on tensor cores), and the choice is the variant's.
    TensorRT for RTX takes every type from the graph and has no such options.

    Args:
        provider: a short name of `PROVIDERS`.
        available: onnxruntime's names of the providers that are installed; the one asked for is not looked up.
        threads: the size of a provider's own thread pool.
        precision: of the file, as a bundle names it: fp32, fp16, int8, ...; None for a file of unknown precision, taken for fp32.
        cache: where TensorRT keeps engines; None keeps none.
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
        # Without it TensorRT refuses a network with QuantizeLinear nodes (onnxruntime#13381).
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
