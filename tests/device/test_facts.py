from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgetl.device.cores import available_cores, cgroup_quota, cpu_cgroups
from edgetl.device.facts import core_frequency, device_facts, device_state, installed_version, peak_memory_bytes
from tests.device.machines import CONTAINER, OLD_CONTAINER, PI, VM, build


def test_a_virtual_machine(tmp_path: Path) -> None:
    proc, sys_root = build(tmp_path, VM)
    facts, state = device_facts(proc, sys_root), device_state(proc, sys_root)
    assert (facts["cpu"], facts["board"], facts["memory_bytes"]) == ("Imaginary EPYC 9000", "Virtual Machine", 8_000_000 * 1024)
    assert (facts["cpu_quota"], facts["gpus"]) == (None, [])
    ticks = os.sysconf("SC_CLK_TCK")
    assert state["cpu_seconds"] == {"busy": 11_050 / ticks, "total": 111_350 / ticks, "steal": 200 / ticks}
    assert state["load"] == [0.5, 0.4, 0.3]
    assert state["pressure_us"] == {"cpu": 1_000_000, "memory": 0, "io": 500}
    # A root group counts no throttling: that is not the same as none.
    assert [state[name] for name in ("throttling", "thermal_throttles", "frequency_khz", "governors", "temperature_c")] == [None] * 5


def test_a_container_with_a_quota(tmp_path: Path) -> None:
    proc, sys_root = build(tmp_path, CONTAINER)
    assert cgroup_quota(proc, sys_root) == 1.5
    assert available_cores(proc, sys_root) == min(2, len(os.sched_getaffinity(0)))
    # A quota further up throttles too.
    assert device_state(proc, sys_root)["throttling"] == {"periods": 11, "seconds": pytest.approx(2.501)}


def test_a_container_of_cgroup_v1(tmp_path: Path) -> None:
    proc, sys_root = build(tmp_path, OLD_CONTAINER)
    assert cgroup_quota(proc, sys_root) == 0.5
    assert available_cores(proc, sys_root) == 1
    state = device_state(proc, sys_root)
    assert state["throttling"] == {"periods": 3, "seconds": pytest.approx(1.5)}
    assert state["pressure_us"] == {"cpu": None, "memory": None, "io": None}


@pytest.mark.parametrize("quota", ["-1", "garbage"])
def test_no_limit_in_cgroup_v1(tmp_path: Path, quota: str) -> None:
    files = {**OLD_CONTAINER, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": f"{quota}\n"}
    assert cgroup_quota(*build(tmp_path, files)) is None


def test_a_raspberry_pi(tmp_path: Path) -> None:
    proc, sys_root = build(tmp_path, PI)
    facts, state = device_facts(proc, sys_root), device_state(proc, sys_root)
    assert (facts["board"], facts["cpu"]) == ("Raspberry Pi 4 Model B Rev 1.4", "BCM2835")
    assert state["frequency_khz"] == core_frequency(sys_root) == 1_500_000
    assert (state["governors"], state["temperature_c"], state["firmware_throttled"]) == (["ondemand"], 61.835, "50000")
    assert (state["throttling"], state["pressure_us"]["cpu"]) == (None, None)


def test_throttle_counters_are_summed(tmp_path: Path) -> None:
    counters = {f"sys/devices/system/cpu/cpu{core}/thermal_throttle/core_throttle_count": f"{core + 2}\n" for core in range(2)}
    assert device_state(*build(tmp_path, {**VM, **counters}))["thermal_throttles"] == 5


def test_nvidia_gpus(tmp_path: Path) -> None:
    card = {"proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA Imaginary 9\nIRQ:   1\n"}
    assert device_facts(*build(tmp_path, {**VM, **card}))["gpus"] == ["NVIDIA Imaginary 9"]


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    proc, sys_root = build(tmp_path, {})
    facts, state = device_facts(proc, sys_root), device_state(proc, sys_root)
    assert (facts["board"], facts["cpu"], facts["memory_bytes"]) == (None, None, None)
    assert [value for name, value in state.items() if name not in ("monotonic_s", "pressure_us")] == [None] * 8
    assert cpu_cgroups(proc, sys_root) == []
    assert available_cores(proc, sys_root) == len(os.sched_getaffinity(0))


def test_this_machine_can_be_read() -> None:
    assert device_facts()["cores_available"] >= 1
    assert device_state()["monotonic_s"] > 0


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="no /proc here")
def test_peak_memory_is_this_processs_own() -> None:
    """A small child of a large parent is small: getrusage would report the parent's memory."""
    program = (
        "import subprocess, sys; held = bytearray(400_000_000); held[::4096] = b'x' * len(held[::4096]);"
        "code = 'from edgetl.device.facts import peak_memory_bytes; print(peak_memory_bytes())';"
        "print(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout)"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root, env={**os.environ, "PYTHONPATH": root}
    )
    assert 1_000_000 < int(done.stdout) < 200_000_000
    assert peak_memory_bytes() is not None


def test_a_package_that_is_not_there_has_no_version() -> None:
    assert installed_version("numpy")
    assert installed_version("surely-not-installed") is None
