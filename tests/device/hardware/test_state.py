from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.core.artifacts.device import CpuTime, DeviceState, PressureStalls, QuotaThrottling
from edgetl.core.typed_json import to_json
from edgetl.device.hardware.info import collect_device_info
from edgetl.device.hardware.memory import free_memory_bytes
from edgetl.device.hardware.noise import assess_noise
from edgetl.device.hardware.state import read_device_state
from tests.helpers.machines import CONTAINER, JETSON, LAPTOP, MACHINES, OLD_CONTAINER, PI, VM, build

ALWAYS_REPORTED = ("monotonic_s", "pressure_us")


def reported_fields(state: DeviceState) -> set[str]:
    return {name for name, value in vars(state).items() if value is not None}


def test_device_state_of_virtual_machine(tmp_path: Path) -> None:
    state = read_device_state(*build(tmp_path, VM))
    ticks = os.sysconf("SC_CLK_TCK")
    assert state.cpu_seconds == CpuTime(11_050 / ticks, 111_350 / ticks, 200 / ticks)
    assert state.load == (0.5, 0.4, 0.3)
    assert state.pressure_us == PressureStalls(1_000_000, 0, 500)
    # A root group does not count throttling, so it is unknown, not zero.
    assert reported_fields(state) == {*ALWAYS_REPORTED, "load", "cpu_seconds"}


def test_throttling_sums_quotas_of_parent_groups(tmp_path: Path) -> None:
    # Quotas of parent groups throttle too.
    assert read_device_state(*build(tmp_path, CONTAINER)).throttling == QuotaThrottling(
        11, pytest.approx(2.501)
    )


def test_throttling_of_cgroup_v1(tmp_path: Path) -> None:
    state = read_device_state(*build(tmp_path, OLD_CONTAINER))
    assert state.throttling == QuotaThrottling(3, pytest.approx(1.5))
    assert state.pressure_us == PressureStalls()


def test_device_state_of_raspberry_pi(tmp_path: Path) -> None:
    state = read_device_state(*build(tmp_path, PI))
    assert (state.frequency_khz, state.frequencies_khz) == (
        1_500_000,
        {"cpu0": 1_500_000, "cpu1": 600_000},
    )
    assert state.frequency_limits_khz == (600_000, 1_500_000)
    assert (state.governors, state.firmware_throttled) == (("ondemand",), "50000")
    assert (state.temperature_c, state.temperatures_c) == (61.835, {"cpu-thermal": 61.835})
    assert state.swap_used_bytes == 10_000 * 1024
    assert (
        state.throttling,
        state.pressure_us.cpu,
        state.turbo,
        state.power_source,
    ) == (None,) * 4


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("echo throttled=0x50005", "50005"),
        ("echo throttled=0x0", "0"),
        ("echo VCHI initialization failed; exit 255", None),
        ("printf '\\377\\376'", None),
        ("exec sleep 30", None),
    ],
)
def test_firmware_throttling_falls_back_to_vcgencmd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, flags: str | None
) -> None:
    tool = tmp_path / "bin/vcgencmd"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("edgetl.device.hardware.state._VCGENCMD_TIMEOUT_S", 0.5)
    files = {name: text for name, text in PI.items() if "firmware" not in name}
    assert read_device_state(*build(tmp_path, files)).firmware_throttled == flags


def test_firmware_throttling_is_none_without_vcgencmd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    files = {name: text for name, text in PI.items() if "firmware" not in name}
    assert read_device_state(*build(tmp_path, files)).firmware_throttled is None


def test_device_state_of_jetson(tmp_path: Path) -> None:
    state = read_device_state(*build(tmp_path, JETSON))
    assert (state.over_current_events, state.power_mode) == (
        {"oc1": 0, "oc2": 1, "oc3": 2},
        "MAXN_SUPER",
    )
    # A sensor that is switched off is left out.
    assert state.temperatures_c == {"cpu-thermal": 48.5}
    assert (state.swap_used_bytes, state.governors) == (0, ("schedutil",))


def test_device_state_of_laptop(tmp_path: Path) -> None:
    state = read_device_state(*build(tmp_path, LAPTOP))
    assert (state.turbo, state.power_source, state.battery_percent) == (
        True,
        "battery",
        63,
    )
    assert (state.temperatures_c, state.temperature_c) == (
        {"acpitz": 40.0, "x86_pkg_temp": 71.0, "coretemp": 72.0},
        72.0,
    )
    assert state.thermal_throttles == {"core": 3, "package": 7}


@pytest.mark.parametrize(
    ("changes", "source", "percent"),
    [
        ({"AC/online": "1"}, "mains", None),
        ({"BAT0/status": "Charging"}, "mains", None),
        ({"BAT0/status": "Full"}, "mains", None),
        ({"BAT0/status": "Unknown"}, "battery", 63),
        ({"BAT0/capacity": "900"}, "battery", None),
        ({"AC/online": "", "BAT0/status": "Unknown"}, None, None),
        ({"AC/type": "UPS", "BAT0/type": "UPS"}, None, None),
    ],
)
def test_power_source_and_battery_percent(
    tmp_path: Path, changes: dict[str, str], source: str | None, percent: int | None
) -> None:
    files = {**LAPTOP, **{f"sys/class/power_supply/{name}": text for name, text in changes.items()}}
    state = read_device_state(*build(tmp_path, files))
    assert (state.power_source, state.battery_percent) == (source, percent)


@pytest.mark.parametrize(
    ("files", "turbo"),
    [
        ({"intel_pstate/no_turbo": "1"}, False),
        ({"cpufreq/boost": "1"}, True),
        ({"cpufreq/boost": "0"}, False),
        ({"cpufreq/boost": "7"}, None),
        ({}, None),
    ],
)
def test_turbo_follows_kernel_files(
    tmp_path: Path, files: dict[str, str], turbo: bool | None
) -> None:
    tree = {f"sys/devices/system/cpu/{name}": text for name, text in files.items()}
    assert read_device_state(*build(tmp_path, tree)).turbo is turbo


def test_thermal_throttles_are_summed_over_cores(tmp_path: Path) -> None:
    counters = {
        f"sys/devices/system/cpu/cpu{core}/thermal_throttle/core_throttle_count": f"{core + 2}\n"
        for core in range(2)
    }
    assert read_device_state(*build(tmp_path, {**VM, **counters})).thermal_throttles == {"core": 5}


def test_device_state_is_none_when_not_reported(tmp_path: Path) -> None:
    state = read_device_state(*build(tmp_path, {}))
    assert reported_fields(state) == set(ALWAYS_REPORTED)


def test_device_state_of_this_machine_is_json() -> None:
    before = read_device_state()
    after = read_device_state()
    json.dumps(to_json(after), allow_nan=False)
    assert after.monotonic_s > before.monotonic_s
    assert assess_noise(before, after, 0.0, {}).measured.disturbance >= 0
    if Path("/proc/stat").is_file():
        assert after.cpu_seconds is not None
        assert before.cpu_seconds is not None
        assert after.cpu_seconds.total >= before.cpu_seconds.total > 0


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    "garbage", ["garbage", "some garbage\nmore: garbage", "\0\0", "- -", "nan inf", "9" * 500]
)
def test_malformed_files_are_treated_as_absent(tmp_path: Path, machine: str, garbage: str) -> None:
    proc, sys_root = build(tmp_path, dict.fromkeys(MACHINES[machine], garbage))
    state = read_device_state(proc, sys_root)
    facts = collect_device_info(proc, sys_root)
    # Any text is a valid governor.
    assert reported_fields(state) <= {*ALWAYS_REPORTED, "governors"}
    assert state.pressure_us == PressureStalls()
    names = (
        "cpu_quota",
        "memory_bytes",
        "swap_total_bytes",
        "frequency_limits_khz",
        "power_mode",
        "gpu_driver",
        "cpu_flags",
    )
    assert [getattr(facts, name) for name in names] == [None] * len(names)
    assert facts.gpus == ()


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(),
    content=st.binary(max_size=400)
    | st.text("0123456789-+.:=/ kBesomtalx\n\0", max_size=60).map(str.encode),
)
def test_readings_survive_any_file_content(data: st.DataObject, content: bytes) -> None:
    files = MACHINES[data.draw(st.sampled_from(sorted(MACHINES)))]
    name = data.draw(st.sampled_from(sorted(files)))
    with TemporaryDirectory() as folder:
        proc, sys_root = build(Path(folder), files)
        before = read_device_state(proc, sys_root)
        (Path(folder) / name).write_bytes(content)
        after = read_device_state(proc, sys_root)
        json.dumps(
            [
                to_json(after),
                to_json(collect_device_info(proc, sys_root)),
                to_json(assess_noise(before, after, 0.0, {})),
            ],
            allow_nan=False,
        )
        assert assess_noise(before, after, 0.0, {}).measured.disturbance >= 0
        assert free_memory_bytes(proc, sys_root) >= 0
