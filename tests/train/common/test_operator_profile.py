from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch.autograd import DeviceType

from edgetl.train.common.operator_profile import operator_profile


def event(
    key: str,
    device: DeviceType,
    count: int = 10,
    cpu: float = 0.0,
    gpu: float = 0.0,
    annotation: bool = False,
) -> Any:
    return SimpleNamespace(
        key=key,
        device_type=device,
        count=count,
        self_cpu_time_total=cpu,
        self_device_time_total=gpu,
        is_user_annotation=annotation,
    )


LAUNCHED = [
    event("aten::empty", DeviceType.CPU, 50, cpu=900.0),
    event("aten::cudnn_convolution", DeviceType.CPU, 20, cpu=100.0, gpu=600.0),
    event("aten::relu", DeviceType.CPU, 10, cpu=100.0, gpu=200.0),
    event("sm90_xmma_fprop", DeviceType.CUDA, 20, gpu=600.0),
    event("vectorized_elementwise", DeviceType.CUDA, 10, gpu=200.0),
    event("ProfilerStep", DeviceType.CUDA, 1, gpu=5000.0, annotation=True),
]


def test_profile_counts_gpu_time_once() -> None:
    profile = operator_profile(LAUNCHED, 10, "cuda")
    assert (profile.clock, profile.rows) == ("gpu", "operators")
    assert [
        (entry.operator, entry.nodes, entry.us, entry.share) for entry in profile.operators
    ] == [
        ("aten::cudnn_convolution", 2, 60.0, 0.75),
        ("aten::relu", 1, 20.0, 0.25),
    ]
    assert {entry.provider for entry in profile.operators} == {"cuda"}


def test_profile_lists_kernels_without_operators() -> None:
    replayed = [
        event("cudaGraphLaunch", DeviceType.CPU, cpu=50.0),
        *[entry for entry in LAUNCHED if entry.device_type == DeviceType.CUDA],
    ]
    profile = operator_profile(replayed, 10, "cuda")
    assert (profile.clock, profile.rows) == ("gpu", "kernels")
    assert [entry.operator for entry in profile.operators] == [
        "sm90_xmma_fprop",
        "vectorized_elementwise",
    ]
    assert sum(entry.share for entry in profile.operators) == pytest.approx(1)


def test_profile_uses_host_time_without_kernels() -> None:
    profile = operator_profile(
        [*LAUNCHED[:1], event("aten::conv", DeviceType.CPU, 10, cpu=100.0)], 10, "cpu"
    )
    assert profile.clock == "host"
    assert [(entry.operator, entry.us) for entry in profile.operators] == [
        ("aten::empty", 90.0),
        ("aten::conv", 10.0),
    ]
