from __future__ import annotations

from typing import get_args

import pytest

from edgetl.core.artifacts.bench import EAGER_VARIANT
from edgetl.core.config.bench import TorchModeName
from edgetl.core.config.torch_modes import BF16_TOLERANCE, FP16_TOLERANCE, TORCH_MODES


def test_torch_modes_cover_option_values() -> None:
    assert set(TORCH_MODES) == set(get_args(TorchModeName))
    assert TORCH_MODES["eager"].variant == EAGER_VARIANT
    assert len({mode.variant for mode in TORCH_MODES.values()}) == len(TORCH_MODES)


@pytest.mark.parametrize(
    ("name", "dtype", "compiled", "captured", "gpu_only"),
    [
        ("eager", "float32", False, False, False),
        ("bf16", "bfloat16", False, False, False),
        ("fp16", "float16", False, False, True),
        ("compile", "float32", True, False, False),
        ("cuda-graph", "float32", False, True, True),
        ("fp16-cuda-graph", "float16", False, True, True),
    ],
)
def test_torch_mode_properties(
    name: str, dtype: str, compiled: bool, captured: bool, gpu_only: bool
) -> None:
    mode = TORCH_MODES[name]
    assert (mode.dtype, mode.uses_compile, mode.uses_cuda_graph, mode.gpu_only) == (
        dtype,
        compiled,
        captured,
        gpu_only,
    )


def test_compile_arguments_depend_on_device() -> None:
    assert TORCH_MODES["compile"].get_compile_arguments("cuda") == {"mode": "reduce-overhead"}
    assert TORCH_MODES["compile"].get_compile_arguments("cpu") == {}
    assert TORCH_MODES["eager"].get_compile_arguments("cuda") is None


@pytest.mark.parametrize(
    ("name", "device", "tolerance"),
    [
        ("eager", "cpu", 0.0),
        ("eager", "cuda", FP16_TOLERANCE),
        ("cuda-graph", "cuda", FP16_TOLERANCE),
        ("fp16", "cuda", FP16_TOLERANCE),
        ("bf16", "cpu", BF16_TOLERANCE),
        ("bf16", "cuda", BF16_TOLERANCE),
    ],
)
def test_relative_tolerance_depends_on_precision(name: str, device: str, tolerance: float) -> None:
    assert TORCH_MODES[name].relative_tolerance(device) == tolerance
