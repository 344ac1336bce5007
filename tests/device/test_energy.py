from __future__ import annotations

import builtins
import ctypes
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.device.energy import EnergyMeter, Rail, counted
from edgetl.device.nvml import Nvml
from tests.device.machines import JETSON, LAPTOP, VM, build

RAPL = "sys/class/powercap/intel-rapl:0/energy_uj"
CURRENT = "sys/class/hwmon/hwmon1/curr1_input"


class Gpus:
    """Counters that say what they are told to."""

    def __init__(self, *energies_mj: int | None) -> None:
        self.energies_mj = list(energies_mj)

    def count(self) -> int:
        return len(self.energies_mj)

    def energy_mj(self, index: int) -> int | None:
        return self.energies_mj[index]


def test_a_machine_without_counters(tmp_path: Path) -> None:
    meter = EnergyMeter(build(tmp_path, VM)[1], Gpus())
    assert (meter.sources, meter.denied) == ((), ())
    threads = threading.active_count()
    meter.start()
    assert threading.active_count() == threads
    assert meter.stop() == {}


def test_a_laptops_package(tmp_path: Path) -> None:
    meter = EnergyMeter(build(tmp_path, LAPTOP)[1], Gpus())
    # Cores are part of the package; psys is not everywhere the whole machine.
    assert meter.sources == ("rapl:package-0",)
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
    assert (meter.sources, meter.denied) == ((), ("rapl:package-0",))
    meter.start()
    assert meter.stop() == {}


def test_gpus_that_count_and_one_that_does_not(tmp_path: Path) -> None:
    gpus = Gpus(5_000, None, 7_000)
    meter = EnergyMeter(build(tmp_path, {})[1], gpus)
    assert meter.sources == ("nvml:0", "nvml:2")
    meter.start()
    gpus.energies_mj = [6_500, None, 7_000]
    assert meter.stop() == {"nvml:0": 1.5, "nvml:2": 0.0}


def test_a_gpu_that_fails_meanwhile_is_left_out(tmp_path: Path) -> None:
    gpus = Gpus(5_000, 1_000)
    meter = EnergyMeter(build(tmp_path, {})[1], gpus)
    meter.start()
    gpus.energies_mj = [6_000]
    assert meter.stop() == {"nvml:0": 1.0}
    meter.start()
    gpus.energies_mj = [10]  # the driver was loaded anew
    assert meter.stop() == {}


class Library:
    """libnvidia-ml as far as it is called: two GPUs, of which the second is too old to count."""

    def __init__(self, name: str) -> None:
        assert name == "libnvidia-ml.so.1"

    def nvmlInit_v2(self) -> int:  # noqa: N802
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802
        count._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:  # noqa: N802
        handle._obj.value = 0x1000 + index.value
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, energy: Any) -> int:  # noqa: N802
        energy._obj.value = 2**40
        return 0 if handle.value == 0x1000 else 3  # NVML_ERROR_NOT_SUPPORTED


def test_nvidias_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", Library)
    library = Nvml()
    assert (library.count(), library.energy_mj(0), library.energy_mj(1)) == (2, 2**40, None)
    assert EnergyMeter(build(tmp_path, {})[1]).sources == ("nvml:0",)


def test_a_library_without_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Library, "nvmlInit_v2", lambda library: 9)  # NVML_ERROR_DRIVER_NOT_LOADED
    monkeypatch.setattr(ctypes, "CDLL", Library)
    with pytest.raises(OSError, match="nvmlInit_v2 answered 9"):
        Nvml()
    assert EnergyMeter(build(tmp_path, {})[1]).sources == ()


def test_a_library_of_another_age(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Library, "nvmlDeviceGetTotalEnergyConsumption")
    monkeypatch.setattr(ctypes, "CDLL", Library)
    assert Nvml().energy_mj(0) is None


def test_a_library_that_crashes_is_no_library(tmp_path: Path) -> None:
    class Broken(Gpus):
        def count(self) -> int:
            raise OSError("nvmlDeviceGetCount_v2 answered 999")

    assert EnergyMeter(build(tmp_path, {})[1], Broken(1)).sources == ()


def test_a_jetsons_supply_is_integrated(tmp_path: Path) -> None:
    rail = Rail("ina3221:VDD_IN", build(tmp_path, JETSON)[1] / "class/hwmon/hwmon1", 1)
    rail.start(100.0)
    assert rail.joules() is None
    rail.look(102.0)  # 8 W all the while
    (tmp_path / CURRENT).write_text("2000\n")
    rail.look(103.0)  # from 8 W to 10 W
    assert rail.joules() == pytest.approx(16.0 + 9.0)


def test_a_thread_samples_between_the_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = EnergyMeter(build(tmp_path, JETSON)[1], Gpus())
    # The other rail is a part of the first.
    assert meter.sources == ("ina3221:VDD_IN (sampled)",)
    taken: list[float] = []
    monkeypatch.setattr(Rail, "watts", lambda rail: taken.append(8.0) or 8.0)
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
    assert set(joules) <= set(meter.sources)
    assert all(value >= 0 for value in joules.values())


@given(width=st.integers(1, 2**64), data=st.data())
def test_a_counter_that_starts_again(width: int, data: st.DataObject) -> None:
    before, gone = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, width - 1))
    assert counted(before, (before + gone) % width, width) == gone


@given(st.integers(1, 2**64), st.integers(0, 2**64))
def test_a_counter_without_a_width_that_was_set_back(before: int, after: int) -> None:
    assert counted(before, after, None) == (after - before if after >= before else None)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60), st.sampled_from(sorted(name for name in {**LAPTOP, **JETSON} if "powercap" in name or "hwmon1" in name)))
def test_no_content_of_any_file_stops_the_meter(tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str) -> None:
    folder = tmp_path_factory.mktemp("energy")
    sys_root = build(folder, {**LAPTOP, **JETSON})[1]
    meter = EnergyMeter(sys_root, Gpus())
    meter.start()
    (folder / name).write_bytes(content)
    assert all(isinstance(value, float) for value in meter.stop().values())
    again = EnergyMeter(sys_root, Gpus())
    again.start()
    again.stop()
