from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from edgetl.core.artifacts.device import GpuState
from edgetl.core.typed_json import to_json
from edgetl.device.bench.monitors import GpuMonitor
from edgetl.device.hardware.info import collect_device_info
from edgetl.device.hardware.nvml import (
    GpuInfo,
    Nvml,
    clock_event_reason_names,
    first_cuda_device,
    read_gpu_info,
    read_gpu_states,
)
from edgetl.device.hardware.state import read_device_state
from tests.helpers.gpus import FakePynvml, NVMLError
from tests.helpers.machines import VM, build


def test_gpu_state_has_all_values() -> None:
    busy, old = Nvml(FakePynvml()).read_states()
    assert busy == GpuState(
        graphics_clock_mhz=1740,
        sm_clock_mhz=1755,
        memory_clock_mhz=2619,
        max_graphics_clock_mhz=1980,
        max_sm_clock_mhz=1980,
        max_memory_clock_mhz=2619,
        throttle_reasons=("sw power cap",),
        temperature_c=54,
        power_w=412.5,
        power_limit_w=700.0,
        memory_used_bytes=2 * 2**30,
        memory_total_bytes=80 * 2**30,
        utilization_percent=97,
        performance_state="P0",
        persistence_mode=True,
        mig_mode=False,
        compute_processes=(),
    )
    assert old == GpuState()


def test_throttle_reasons_fall_back_to_old_function() -> None:
    class OldDriver(FakePynvml):
        def nvmlDeviceGetCurrentClocksEventReasons(self, handle: int) -> int:  # noqa: N802
            raise NVMLError("Function Not Found")

        def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> int:  # noqa: N802
            return 0x48

    assert Nvml(OldDriver()).read_states()[0].throttle_reasons == (
        "hw slowdown",
        "hw thermal slowdown",
    )


@pytest.mark.parametrize(
    ("mask", "names"),
    [
        (0, ()),
        (1, ("gpu idle",)),
        (0x80 | 0x20, ("sw thermal slowdown", "hw power brake slowdown")),
        (1 << 40, ()),
    ],
)
def test_clock_event_reason_names_follow_bits(mask: int, names: tuple[str, ...]) -> None:
    assert clock_event_reason_names(mask) == names


def test_device_info_contains_gpu_facts(tmp_path: Path) -> None:
    facts = collect_device_info(*build(tmp_path, VM), gpus=Nvml(FakePynvml()))
    assert facts.gpus == ("NVIDIA H100 80GB HBM3", "NVIDIA K20")
    assert (facts.gpu_driver, facts.cuda_driver) == ("580.65.06", "13.2")
    assert facts.gpu_memory_bytes == (80 * 2**30, None)
    assert facts.gpu_compute_capability == ("9.0", None)


def test_device_state_contains_gpus_by_index(tmp_path: Path) -> None:
    state = read_device_state(*build(tmp_path, VM), gpus=Nvml(FakePynvml()))
    assert state.gpus is not None
    assert [*state.gpus] == ["0", "1"]
    assert state.gpus["0"].temperature_c == 54
    json.dumps(to_json(state), allow_nan=False)


def test_nvml_is_not_used_for_other_machines(tmp_path: Path) -> None:
    assert read_device_state(*build(tmp_path, VM)).gpus is None
    facts = collect_device_info(*build(tmp_path, VM))
    assert (facts.cuda_driver, facts.gpu_memory_bytes, facts.gpu_compute_capability) == (
        None,
        None,
        None,
    )


def test_nvml_raises_without_driver() -> None:
    class NoDriver(FakePynvml):
        def nvmlInit(self) -> None:  # noqa: N802
            raise NVMLError("Driver Not Loaded")

    with pytest.raises(OSError, match="Driver Not Loaded"):
        Nvml(NoDriver())


def test_nvml_raises_without_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(OSError, match="nvidia-ml-py is not installed"):
        Nvml()


def test_gpu_readings_are_empty_when_driver_fails() -> None:
    class LostGpu(FakePynvml):
        def nvmlDeviceGetCount(self) -> int:  # noqa: N802
            raise NVMLError("GPU is lost")

    reader = Nvml(LostGpu())
    assert (read_gpu_states(reader), read_gpu_info(reader)) == ([], GpuInfo())
    assert (read_gpu_states(None), read_gpu_info(None)) == ([], GpuInfo())


@pytest.mark.parametrize(
    ("environment", "index"),
    [
        ({}, 0),
        ({"CUDA_VISIBLE_DEVICES": "1,0"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1001"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "7"}, 0),
        ({"CUDA_VISIBLE_DEVICES": "MIG-1"}, 0),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
    ],
)
def test_first_cuda_device_follows_environment(environment: dict[str, str], index: int) -> None:
    assert first_cuda_device(["GPU-1000-aaaa", "GPU-1001-aaaa"], environment) == index


def test_gpu_monitor_summarizes_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    library = FakePynvml()
    monitor = GpuMonitor(Nvml(library))
    assert monitor.summarize() is None
    monitor.read()
    library.sm_clock_mhz, library.reasons = 1500, 0x44
    monitor.read()
    summary = monitor.summarize()
    assert summary is not None
    assert summary.sm_clocks_mhz == (1755, 1500)
    assert summary.throttle_reasons == ("hw thermal slowdown", "sw power cap")
    assert (summary.index, summary.max_sm_clock_mhz, summary.power_w) == (0, 1980, 412.5)
    assert summary.memory_used_bytes == 2 * 2**30


def test_gpu_monitor_summary_has_gaps_for_unknown_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monitor = GpuMonitor(Nvml(FakePynvml()))
    monitor.read()
    summary = monitor.summarize()
    assert summary is not None
    assert (summary.index, summary.sm_clocks_mhz, summary.throttle_reasons) == (1, (), ())
    assert summary.power_w is None
