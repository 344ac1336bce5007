from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from edgetl.device.runtime.io_binding import DEVICE_TYPES
from edgetl.device.runtime.providers import CUDA_PROVIDERS, PROVIDERS, EngineCache, provider_chain

ORT_PROVIDERS = list(PROVIDERS.values())
CPU, CUDA = ("CPUExecutionProvider", {}), ("CUDAExecutionProvider", {})
CACHE = EngineCache(Path("/cache/engines"), Path("/cache/timings"))


def test_provider_names_are_known_to_onnxruntime() -> None:
    assert set(PROVIDERS.values()) <= set(onnxruntime.get_all_providers())


def test_cpu_chain_has_only_cpu() -> None:
    assert provider_chain("cpu", ORT_PROVIDERS, 2) == [CPU]


def test_cuda_chain_ends_with_cpu() -> None:
    assert provider_chain("cuda", ORT_PROVIDERS, 2) == [CUDA, CPU]


@pytest.mark.parametrize("provider", ["tensorrt", "nv_tensorrt_rtx"])
def test_tensorrt_chain_includes_cuda_when_installed(provider: str) -> None:
    assert [name for name, _ in provider_chain(provider, ORT_PROVIDERS, 2)] == [
        PROVIDERS[provider],
        CUDA[0],
        CPU[0],
    ]
    assert [name for name, _ in provider_chain(provider, [], 2)] == [PROVIDERS[provider], CPU[0]]


@pytest.mark.parametrize(
    ("precision", "fp16", "int8"),
    [
        (None, "False", "False"),
        ("fp32", "False", "False"),
        ("fp16", "True", "False"),
        ("int8", "False", "True"),
        ("int8-weights", "False", "True"),
    ],
)
def test_tensorrt_options_follow_file_precision(
    precision: str | None, fp16: str, int8: str
) -> None:
    (_, options), *_ = provider_chain("tensorrt", ORT_PROVIDERS, 2, precision)
    assert (options["trt_fp16_enable"], options["trt_int8_enable"]) == (fp16, int8)


def test_tensorrt_options_contain_cache_folders() -> None:
    (_, options), *_ = provider_chain("tensorrt", ORT_PROVIDERS, 2, "fp16", CACHE)
    assert options["trt_engine_cache_path"] == "/cache/engines"
    assert options["trt_timing_cache_path"] == "/cache/timings"
    assert options["trt_engine_cache_enable"] == options["trt_timing_cache_enable"] == "True"


def test_tensorrt_options_have_no_cache_without_folder() -> None:
    (_, options), *_ = provider_chain("tensorrt", ORT_PROVIDERS, 2)
    assert not any("cache" in name for name in options)


def test_tensorrt_rtx_has_only_its_cache_option() -> None:
    assert provider_chain("nv_tensorrt_rtx", [], 2, "fp16", CACHE)[0][1] == {
        "nv_runtime_cache_path": "/cache/engines"
    }


def test_tensorrt_option_names_are_in_installed_provider() -> None:
    library = Path(onnxruntime.__file__).parent / "capi/libonnxruntime_providers_tensorrt.so"
    if not library.is_file():
        pytest.skip("this onnxruntime has no TensorRT provider")
    content = library.read_bytes()
    (_, options), *_ = provider_chain("tensorrt", ORT_PROVIDERS, 2, "fp16", CACHE)
    assert all(name.encode() + b"\0" in content for name in options)


def test_thread_pool_size_is_set_by_provider_option() -> None:
    assert provider_chain("openvino", ORT_PROVIDERS, 3)[0][1] == {"num_of_threads": "3"}
    assert provider_chain("xnnpack", ORT_PROVIDERS, 3)[0][1] == {"intra_op_num_threads": "3"}


def test_all_cuda_providers_use_cuda_memory() -> None:
    assert dict.fromkeys(CUDA_PROVIDERS, "cuda") == DEVICE_TYPES
