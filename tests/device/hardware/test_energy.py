from __future__ import annotations

import builtins
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.bench.timing import BlockMonitor, BlockTimer
from edgetl.device.hardware.energy import MIN_GPU_WINDOW_S, EnergyMeter, PowerRail, counter_delta
from edgetl.device.hardware.nvml import Nvml
from tests.helpers.gpus import FakePynvml
from tests.helpers.machines import JETSON, LAPTOP, VM, build

RAPL = "sys/class/powercap/intel-rapl:0/energy_uj"
CURRENT = "sys/class/hwmon/hwmon1/curr1_input"


class Gpus:
    """Counters that say what they are told to."""

    def __init__(self, *energies_mj: int | None) -> None:
        self.energies_mj = list(energies_mj)

    def count_gpus(self) -> int:
        return len(self.energies_mj)

    def energy_mj(self, index: int) -> int | None:
        return self.energies_mj[index]


class Seconds:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_machine_without_counters(tmp_path: Path) -> None:
    meter = EnergyMeter(build(tmp_path, VM)[1], Gpus())
    assert (meter.source_names, meter.denied_source_names) == ((), ())
    threads = threading.active_count()
    meter.start()
    assert threading.active_count() == threads
    assert meter.stop() == {}


def test_a_laptops_package(tmp_path: Path) -> None:
    meter = EnergyMeter(build(tmp_path, LAPTOP)[1], Gpus())
    # Cores are part of the package; psys is not everywhere the whole machine.
    assert meter.source_names == ("rapl:package-0",)
    meter.start()
    (tmp_path / RAPL).write_text("262143300000\n")
    assert meter.stop() == {"rapl:package-0": pytest.approx(0.3)}
    meter.start()
    (tmp_path / RAPL).write_text("1971150\n")  # started again at max_energy_range_uj
    assert meter.stop() == {"rapl:package-0": pytest.approx(2.0)}


def test_a_counter_that_only_root_may_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sys_root = build(tmp_path, LAPTOP)[1]

    def refused(path: Path, *arguments: object, **named: object) -> object:
        if path == tmp_path / RAPL:
            raise PermissionError(13, "Permission denied")
        return builtins.open(path, *arguments, **named)  # type: ignore[call-overload]  # noqa: PTH123

    monkeypatch.setattr(Path, "open", refused)
    meter = EnergyMeter(sys_root, Gpus())
    assert (meter.source_names, meter.denied_source_names) == ((), ("rapl:package-0",))
    meter.start()
    assert meter.stop() == {}


def test_gpus_that_count_and_one_that_does_not(tmp_path: Path) -> None:
    gpus, clock = Gpus(5_000, None, 7_000), Seconds()
    meter = EnergyMeter(build(tmp_path, {})[1], gpus, clock)
    assert meter.source_names == ("nvml:0", "nvml:2")
    meter.start()
    clock.now += 3
    gpus.energies_mj = [6_500, None, 7_000]
    assert meter.stop() == {"nvml:0": 1.5, "nvml:2": 0.0}


def test_a_gpu_that_fails_meanwhile_is_left_out(tmp_path: Path) -> None:
    gpus, clock = Gpus(5_000, 1_000), Seconds()
    meter = EnergyMeter(build(tmp_path, {})[1], gpus, clock)
    meter.start()
    clock.now += 3
    gpus.energies_mj = [6_000]
    assert meter.stop() == {"nvml:0": 1.0}
    meter.start()
    clock.now += 3
    gpus.energies_mj = [10]  # the driver was loaded anew
    assert meter.stop() == {}


def test_nvml_is_a_source_where_it_counts(tmp_path: Path) -> None:
    assert EnergyMeter(build(tmp_path, {})[1], Nvml(FakePynvml())).source_names == ("nvml:0",)


def test_nvml_of_another_age_does_not_count(tmp_path: Path) -> None:
    class Old(FakePynvml):
        def __getattribute__(self, name: str) -> Any:
            if name == "nvmlDeviceGetTotalEnergyConsumption":
                raise AttributeError(name)
            return super().__getattribute__(name)

    assert Nvml(Old()).energy_mj(0) is None
    assert EnergyMeter(build(tmp_path, {})[1], Nvml(Old())).source_names == ()


@pytest.mark.parametrize(
    ("seconds", "joules"),
    [(0.2, {}), (1.99, {}), (2.0, {"nvml:0": 600.0}), (30.0, {"nvml:0": 600.0})],
)
def test_gpu_energy_needs_a_long_window(
    tmp_path: Path, seconds: float, joules: dict[str, float]
) -> None:
    gpus, clock = Gpus(1_000_000), Seconds()
    meter = EnergyMeter(build(tmp_path, {})[1], gpus, clock)
    meter.start()
    clock.now += seconds
    gpus.energies_mj = [1_600_000]
    assert meter.stop() == joules


def test_gpu_energy_in_short_slices_is_withheld(tmp_path: Path) -> None:
    gpus, clock = Gpus(0), Seconds()
    watch = BlockMonitor(EnergyMeter(build(tmp_path, {})[1], gpus, clock))
    for _ in range(20):
        watch.start()
        clock.now += 0.2
        gpus.energies_mj = [(gpus.energies_mj[0] or 0) + 60_000]
        watch.stop()
    assert watch.energy_j == {}


def test_a_gpu_block_is_one_window_for_the_counter(tmp_path: Path) -> None:
    """The counter is brought up to date every 100 ms: over the whole block that changes little, over 0.2 s it would."""
    clock, watts = Seconds(), 300.0

    class Stepping(Gpus):
        def energy_mj(self, index: int) -> int:
            return int(int(clock.now * 10 + 1e-9) / 10 * watts * 1000)

    def infer(value: object) -> object:
        clock.now += 0.015
        return value

    protocol = BenchProtocol(block_seconds=1.0, block_runs=10, slices=5).for_gpu()
    watch = BlockMonitor(EnergyMeter(build(tmp_path, {})[1], Stepping(0), clock))
    measurement = BlockTimer(
        [("inference", infer)], ["image"], protocol, watch, lambda: int(clock.now * 1e9)
    )
    for _ in range(protocol.slices):
        measurement.run_slice()
    block = measurement.to_block()
    spent_s = sum(block.latencies_ns) / 1e9
    assert (len(block.slices), spent_s >= 2.0) == (1, True)
    assert watch.energy_j["nvml:0"] == pytest.approx(watts * spent_s, rel=0.05)


def test_only_processes_on_a_gpu_get_the_long_block() -> None:
    usual = BenchProtocol()
    assert (usual.slices, usual.block_seconds) == (5, 1.0)
    assert (usual.for_gpu().slices, usual.for_gpu().block_seconds) == (1, MIN_GPU_WINDOW_S)
    assert BenchProtocol(block_seconds=5.0).for_gpu().block_seconds == 5.0


def test_a_library_that_crashes_is_no_library(tmp_path: Path) -> None:
    class Broken(Gpus):
        def count_gpus(self) -> int:
            raise OSError("nvmlDeviceGetCount_v2 answered 999")

    assert EnergyMeter(build(tmp_path, {})[1], Broken(1)).source_names == ()


def test_a_jetsons_supply_is_integrated(tmp_path: Path) -> None:
    rail = PowerRail("ina3221:VDD_IN", build(tmp_path, JETSON)[1] / "class/hwmon/hwmon1", 1)
    rail.start(100.0)
    assert rail.joules() is None
    rail.poll(102.0)  # 8 W all the while
    (tmp_path / CURRENT).write_text("2000\n")
    rail.poll(103.0)  # from 8 W to 10 W
    assert rail.joules() == pytest.approx(16.0 + 9.0)


def test_a_thread_samples_between_the_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = EnergyMeter(build(tmp_path, JETSON)[1], Gpus())
    # The other rail is a part of the first.
    assert meter.source_names == ("ina3221:VDD_IN (sampled)",)
    taken: list[float] = []
    monkeypatch.setattr(PowerRail, "watts", lambda rail: taken.append(8.0) or 8.0)
    clock = time.monotonic
    began = clock()
    meter.start()
    while len(taken) < 4 and clock() < began + 20:
        time.sleep(0.02)
    before_stop = clock() - began
    joules = meter.stop()["ina3221:VDD_IN (sampled)"]
    assert len(taken) > 4
    assert 8.0 * before_stop * 0.5 < joules <= 8.0 * (clock() - began)
    assert not [thread for thread in threading.enumerate() if thread.name == "energy"]


def test_a_sensor_that_is_gone_at_the_end(tmp_path: Path) -> None:
    meter = EnergyMeter(build(tmp_path, JETSON)[1], Gpus())
    meter.start()
    (tmp_path / CURRENT).write_text("garbage")
    assert meter.stop() == {}


def test_stopping_what_never_began(tmp_path: Path) -> None:
    meter = EnergyMeter(build(tmp_path, LAPTOP)[1], Gpus())
    assert meter.stop() == {}
    meter.start()
    meter.start()
    assert set(meter.stop()) == {"rapl:package-0"}
    assert meter.stop() == {}


def test_this_machine() -> None:
    meter = EnergyMeter()
    meter.start()
    joules = meter.stop()
    assert set(joules) <= set(meter.source_names)
    assert all(value >= 0 for value in joules.values())


@given(width=st.integers(1, 2**64), data=st.data())
def test_a_counter_that_starts_again(width: int, data: st.DataObject) -> None:
    before, gone = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, width - 1))
    assert counter_delta(before, (before + gone) % width, width) == gone


@given(st.integers(1, 2**64), st.integers(0, 2**64))
def test_a_counter_without_a_width_that_was_set_back(before: int, after: int) -> None:
    assert counter_delta(before, after, None) == (after - before if after >= before else None)


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=60),
    st.sampled_from(
        sorted(name for name in {**LAPTOP, **JETSON} if "powercap" in name or "hwmon1" in name)
    ),
)
def test_no_content_of_any_file_stops_the_meter(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    folder = tmp_path_factory.mktemp("energy")
    sys_root = build(folder, {**LAPTOP, **JETSON})[1]
    meter = EnergyMeter(sys_root, Gpus())
    meter.start()
    (folder / name).write_bytes(content)
    assert all(isinstance(value, float) for value in meter.stop().values())
    again = EnergyMeter(sys_root, Gpus())
    again.start()
    again.stop()
