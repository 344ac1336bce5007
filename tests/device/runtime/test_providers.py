from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from edgetl.device.runtime.io_binding import DEVICE_TYPES
from edgetl.device.runtime.providers import CUDA_PROVIDERS, PROVIDERS, EngineCache, provider_chain

ALL = list(PROVIDERS.values())
CPU, CUDA = ("CPUExecutionProvider", {}), ("CUDAExecutionProvider", {})
CACHE = EngineCache(Path("/cache/engines"), Path("/cache/timings"))


def test_names_are_onnxruntimes_own() -> None:
    assert set(PROVIDERS.values()) <= set(onnxruntime.get_all_providers())


def test_the_cpu_stands_alone() -> None:
    assert provider_chain("cpu", ALL, 2) == [CPU]


def test_cuda_has_the_cpu_behind_it() -> None:
    assert provider_chain("cuda", ALL, 2) == [CUDA, CPU]


@pytest.mark.parametrize("provider", ["tensorrt", "nv_tensorrt_rtx"])
def test_cuda_stands_behind_tensorrt_where_it_is_installed(provider: str) -> None:
    assert [name for name, _ in provider_chain(provider, ALL, 2)] == [
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
def test_tensorrt_computes_in_the_precision_of_the_file(
    precision: str | None, fp16: str, int8: str
) -> None:
    (_, options), *_ = provider_chain("tensorrt", ALL, 2, precision)
    assert (options["trt_fp16_enable"], options["trt_int8_enable"]) == (fp16, int8)


def test_tensorrt_keeps_engines_and_timings() -> None:
    (_, options), *_ = provider_chain("tensorrt", ALL, 2, "fp16", CACHE)
    assert options["trt_engine_cache_path"] == "/cache/engines"
    assert options["trt_timing_cache_path"] == "/cache/timings"
    assert options["trt_engine_cache_enable"] == options["trt_timing_cache_enable"] == "True"


def test_without_a_folder_tensorrt_keeps_nothing() -> None:
    (_, options), *_ = provider_chain("tensorrt", ALL, 2)
    assert not any("cache" in name for name in options)


def test_tensorrt_rtx_has_options_of_its_own() -> None:
    assert provider_chain("nv_tensorrt_rtx", [], 2, "fp16", CACHE)[0][1] == {
        "nv_runtime_cache_path": "/cache/engines"
    }


def test_option_names_are_those_of_the_installed_tensorrt_provider() -> None:
    library = Path(onnxruntime.__file__).parent / "capi/libonnxruntime_providers_tensorrt.so"
    if not library.is_file():
        pytest.skip("this onnxruntime has no TensorRT provider")
    content = library.read_bytes()
    (_, options), *_ = provider_chain("tensorrt", ALL, 2, "fp16", CACHE)
    assert all(name.encode() + b"\0" in content for name in options)


def test_providers_with_a_pool_of_threads_are_told_its_size() -> None:
    assert provider_chain("openvino", ALL, 3)[0][1] == {"num_of_threads": "3"}
    assert provider_chain("xnnpack", ALL, 3)[0][1] == {"intra_op_num_threads": "3"}


def test_every_provider_on_an_nvidia_gpu_has_its_memory() -> None:
    assert dict.fromkeys(CUDA_PROVIDERS, "cuda") == DEVICE_TYPES
