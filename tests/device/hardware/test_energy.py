from __future__ import annotations

import builtins
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.device.bench.monitors import BlockMonitor
from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.bench.timing import BlockTimer
from edgetl.device.hardware.energy import MIN_GPU_WINDOW_S, EnergyMeter, PowerRail, counter_delta
from edgetl.device.hardware.nvml import Nvml
from tests.helpers.gpus import FakePynvml
from tests.helpers.machines import JETSON, LAPTOP, VM, build

RAPL = "sys/class/powercap/intel-rapl:0/energy_uj"
CURRENT = "sys/class/hwmon/hwmon1/curr1_input"


class FakeGpus:
    """GPU energy counters with values set by the test."""

    def __init__(self, *energies_mj: int | None) -> None:
        self.energies_mj = list(energies_mj)

    def count_gpus(self) -> int:
        return len(self.energies_mj)

    def energy_mj(self, index: int) -> int | None:
        return self.energies_mj[index]


class FakeClock:
    """Clock in seconds that is set by the test."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_meter_without_sources_starts_no_thread(tmp_path: Path) -> None:
    meter = EnergyMeter(build(tmp_path, VM)[1], FakeGpus())
    assert (meter.source_names, meter.denied_source_names) == ((), ())
    threads = threading.active_count()
    meter.start()
    assert threading.active_count() == threads
    assert meter.stop() == {}


def test_rapl_package_is_measured_across_wraparound(tmp_path: Path) -> None:
    meter = EnergyMeter(build(tmp_path, LAPTOP)[1], FakeGpus())
    # Cores are part of the package; psys does not cover the complete machine everywhere.
    assert meter.source_names == ("rapl:package-0",)
    meter.start()
    (tmp_path / RAPL).write_text("262143300000\n")
    assert meter.stop() == {"rapl:package-0": pytest.approx(0.3)}
    meter.start()
    # The counter wrapped around at max_energy_range_uj.
    (tmp_path / RAPL).write_text("1971150\n")
    assert meter.stop() == {"rapl:package-0": pytest.approx(2.0)}


def test_rapl_counter_is_denied_without_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sys_root = build(tmp_path, LAPTOP)[1]

    def fake_open(path: Path, *arguments: object, **options: object) -> object:
        if path == tmp_path / RAPL:
            raise PermissionError(13, "Permission denied")
        return builtins.open(path, *arguments, **options)  # type: ignore[call-overload]  # noqa: PTH123

    monkeypatch.setattr(Path, "open", fake_open)
    meter = EnergyMeter(sys_root, FakeGpus())
    assert (meter.source_names, meter.denied_source_names) == ((), ("rapl:package-0",))
    meter.start()
    assert meter.stop() == {}


def test_gpu_energy_skips_gpu_without_counter(tmp_path: Path) -> None:
    gpus, clock = FakeGpus(5_000, None, 7_000), FakeClock()
    meter = EnergyMeter(build(tmp_path, {})[1], gpus, clock)
    assert meter.source_names == ("nvml:0", "nvml:2")
    meter.start()
    clock.now += 3
    gpus.energies_mj = [6_500, None, 7_000]
    assert meter.stop() == {"nvml:0": 1.5, "nvml:2": 0.0}


def test_gpu_energy_skips_failed_or_reset_gpu(tmp_path: Path) -> None:
    gpus, clock = FakeGpus(5_000, 1_000), FakeClock()
    meter = EnergyMeter(build(tmp_path, {})[1], gpus, clock)
    meter.start()
    clock.now += 3
    gpus.energies_mj = [6_000]
    assert meter.stop() == {"nvml:0": 1.0}
    meter.start()
    clock.now += 3
    # The driver was reloaded.
    gpus.energies_mj = [10]
    assert meter.stop() == {}


def test_nvml_is_source_of_gpu_energy(tmp_path: Path) -> None:
    assert EnergyMeter(build(tmp_path, {})[1], Nvml(FakePynvml())).source_names == ("nvml:0",)


def test_nvml_without_energy_function_is_no_source(tmp_path: Path) -> None:
    class OldPynvml(FakePynvml):
        def __getattribute__(self, name: str) -> Any:
            if name == "nvmlDeviceGetTotalEnergyConsumption":
                raise AttributeError(name)
            return super().__getattribute__(name)

    assert Nvml(OldPynvml()).energy_mj(0) is None
    assert EnergyMeter(build(tmp_path, {})[1], Nvml(OldPynvml())).source_names == ()


@pytest.mark.parametrize(
    ("seconds", "joules"),
    [(0.2, {}), (1.99, {}), (2.0, {"nvml:0": 600.0}), (30.0, {"nvml:0": 600.0})],
)
def test_gpu_energy_needs_minimum_window(
    tmp_path: Path, seconds: float, joules: dict[str, float]
) -> None:
    gpus, clock = FakeGpus(1_000_000), FakeClock()
    meter = EnergyMeter(build(tmp_path, {})[1], gpus, clock)
    meter.start()
    clock.now += seconds
    gpus.energies_mj = [1_600_000]
    assert meter.stop() == joules


def test_gpu_energy_is_withheld_in_short_slices(tmp_path: Path) -> None:
    gpus, clock = FakeGpus(0), FakeClock()
    monitor = BlockMonitor(EnergyMeter(build(tmp_path, {})[1], gpus, clock))
    for _ in range(20):
        monitor.start()
        clock.now += 0.2
        gpus.energies_mj = [(gpus.energies_mj[0] or 0) + 60_000]
        monitor.stop()
    assert monitor.energy_j == {}


def test_gpu_energy_is_accurate_over_one_block(tmp_path: Path) -> None:
    """The counter is updated every 100 ms, which matters over 0.2 s but not over a complete block."""
    clock, watts = FakeClock(), 300.0

    class SteppingGpus(FakeGpus):
        def energy_mj(self, index: int) -> int:
            return int(int(clock.now * 10 + 1e-9) / 10 * watts * 1000)

    def infer(value: object) -> object:
        clock.now += 0.015
        return value

    protocol = BenchProtocol(block_seconds=1.0, block_runs=10, slices=5).for_gpu()
    monitor = BlockMonitor(EnergyMeter(build(tmp_path, {})[1], SteppingGpus(0), clock))
    timer = BlockTimer(
        [("inference", infer)], ["image"], protocol, monitor, lambda: int(clock.now * 1e9)
    )
    for _ in range(protocol.slices):
        timer.run_slice()
    block = timer.to_block()
    block_s = sum(block.latencies_ns) / 1e9
    assert (len(block.slices), block_s >= 2.0) == (1, True)
    assert monitor.energy_j["nvml:0"] == pytest.approx(watts * block_s, rel=0.05)


def test_processor_time_is_summed_over_slices(tmp_path: Path) -> None:
    monitor = BlockMonitor(EnergyMeter(build(tmp_path, {})[1], FakeGpus(0), FakeClock()))
    for _ in range(2):
        monitor.start()
        end_ns = time.process_time_ns() + 20_000_000
        while time.process_time_ns() < end_ns:
            pass
        monitor.stop()
        time.sleep(0.05)
    assert 40_000_000 <= monitor.cpu_ns < 80_000_000


def test_gpu_protocol_uses_one_long_slice() -> None:
    protocol = BenchProtocol()
    gpu_protocol = protocol.for_gpu()
    assert (protocol.slices, protocol.block_seconds) == (5, 1.0)
    assert (gpu_protocol.slices, gpu_protocol.block_seconds) == (1, MIN_GPU_WINDOW_S)
    assert BenchProtocol(block_seconds=5.0).for_gpu().block_seconds == 5.0


def test_nvml_is_no_source_when_it_fails(tmp_path: Path) -> None:
    class BrokenGpus(FakeGpus):
        def count_gpus(self) -> int:
            raise OSError("nvmlDeviceGetCount_v2 returned 999")

    assert EnergyMeter(build(tmp_path, {})[1], BrokenGpus(1)).source_names == ()


def test_power_rail_integrates_trapezoids(tmp_path: Path) -> None:
    rail = PowerRail("ina3221:VDD_IN", build(tmp_path, JETSON)[1] / "class/hwmon/hwmon1", 1)
    rail.start(100.0)
    assert rail.joules() is None
    # 8 W for 2 s, then from 8 W to 10 W in 1 s.
    rail.poll(102.0)
    (tmp_path / CURRENT).write_text("2000\n")
    rail.poll(103.0)
    assert rail.joules() == pytest.approx(16.0 + 9.0)


def test_meter_samples_power_in_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = EnergyMeter(build(tmp_path, JETSON)[1], FakeGpus())
    # The other rail is part of the first.
    assert meter.source_names == ("ina3221:VDD_IN (sampled)",)
    samples: list[float] = []
    monkeypatch.setattr(PowerRail, "watts", lambda rail: samples.append(8.0) or 8.0)
    clock = time.monotonic
    start_s = clock()
    meter.start()
    while len(samples) < 4 and clock() < start_s + 20:
        time.sleep(0.02)
    elapsed_s = clock() - start_s
    joules = meter.stop()["ina3221:VDD_IN (sampled)"]
    assert len(samples) > 4
    assert 8.0 * elapsed_s * 0.5 < joules <= 8.0 * (clock() - start_s)
    assert not [thread for thread in threading.enumerate() if thread.name == "energy"]


def test_power_rail_is_left_out_when_it_fails(tmp_path: Path) -> None:
    meter = EnergyMeter(build(tmp_path, JETSON)[1], FakeGpus())
    meter.start()
    (tmp_path / CURRENT).write_text("garbage")
    assert meter.stop() == {}


def test_meter_stop_is_empty_before_start(tmp_path: Path) -> None:
    meter = EnergyMeter(build(tmp_path, LAPTOP)[1], FakeGpus())
    assert meter.stop() == {}
    meter.start()
    meter.start()
    assert set(meter.stop()) == {"rapl:package-0"}
    assert meter.stop() == {}


def test_meter_on_this_machine() -> None:
    meter = EnergyMeter()
    meter.start()
    joules = meter.stop()
    assert set(joules) <= set(meter.source_names)
    assert all(value >= 0 for value in joules.values())


@given(modulus=st.integers(1, 2**64), data=st.data())
def test_counter_delta_handles_wraparound(modulus: int, data: st.DataObject) -> None:
    before = data.draw(st.integers(0, modulus - 1))
    delta = data.draw(st.integers(0, modulus - 1))
    assert counter_delta(before, (before + delta) % modulus, modulus) == delta


@given(st.integers(1, 2**64), st.integers(0, 2**64))
def test_counter_delta_is_none_after_reset(before: int, after: int) -> None:
    assert counter_delta(before, after, None) == (after - before if after >= before else None)


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=60),
    st.sampled_from(
        sorted(name for name in {**LAPTOP, **JETSON} if "powercap" in name or "hwmon1" in name)
    ),
)
def test_meter_survives_any_file_content(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    folder = tmp_path_factory.mktemp("energy")
    sys_root = build(folder, {**LAPTOP, **JETSON})[1]
    meter = EnergyMeter(sys_root, FakeGpus())
    meter.start()
    (folder / name).write_bytes(content)
    assert all(isinstance(value, float) for value in meter.stop().values())
    second_meter = EnergyMeter(sys_root, FakeGpus())
    second_meter.start()
    second_meter.stop()
