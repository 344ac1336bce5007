from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgetl.core.typed_json import to_json
from edgetl.device.hardware.cpu import available_cores, cgroup_cpu_quota, cpu_cgroup_folders
from edgetl.device.hardware.info import (
    collect_device_info,
    cpu_flags,
    detect_container,
    fastest_core_frequency_khz,
    installed_version,
    peak_memory_bytes,
)
from tests.helpers.machines import CONTAINER, JETSON, LAPTOP, OLD_CONTAINER, PI, VM, build


def test_device_info_of_virtual_machine(tmp_path: Path) -> None:
    facts = collect_device_info(*build(tmp_path, VM))
    assert (facts.cpu, facts.board, facts.memory_bytes) == (
        "Imaginary EPYC 9000",
        "Virtual Machine",
        8_000_000 * 1024,
    )
    assert [
        getattr(facts, name)
        for name in ("cpu_quota", "container", "gpu_driver", "power_mode", "frequency_limits_khz")
    ] == [None] * 5
    # Without a line of flags they are unknown, not empty.
    assert (facts.gpus, facts.cpu_flags, facts.swap_total_bytes) == ((), None, None)
    assert facts.affinity == tuple(sorted(os.sched_getaffinity(0)))


def test_device_info_of_container_with_quota(tmp_path: Path) -> None:
    proc, sys_root = build(tmp_path, CONTAINER)
    assert cgroup_cpu_quota(proc, sys_root) == 1.5
    assert available_cores(proc, sys_root) == min(2, len(os.sched_getaffinity(0)))
    assert collect_device_info(proc, sys_root).container == "docker"


def test_cpu_quota_of_cgroup_v1(tmp_path: Path) -> None:
    proc, sys_root = build(tmp_path, OLD_CONTAINER)
    assert cgroup_cpu_quota(proc, sys_root) == 0.5
    assert available_cores(proc, sys_root) == 1


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({"run/.containerenv": ""}, "podman"),
        (
            {".dockerenv": "", "run/secrets/kubernetes.io/serviceaccount/namespace": "default"},
            "kubernetes",
        ),
        ({"proc/1/cgroup": "0::/kubepods/burstable/pod1/2\n"}, "kubernetes"),
        ({"proc/1/cgroup": "4:cpu,cpuacct:/docker/77\n"}, "docker"),
        ({"proc/1/cgroup": "0::/system.slice/docker-77.scope\n"}, "docker"),
        ({"proc/1/cgroup": "1:name=systemd:/lxc/box\n"}, "lxc"),
        ({"proc/1/environ": "PATH=/bin\0container=lxc\0"}, "lxc"),
        ({"proc/1/environ": "PATH=/bin\0no_container=1\0"}, None),
        ({"proc/sys/kernel/osrelease": "5.15.90.1-microsoft-standard-WSL2\n"}, "wsl"),
        ({"proc/1/cgroup": "0::/init.scope\n"}, None),
    ],
)
def test_detect_container_by_runtime_marks(
    tmp_path: Path, files: dict[str, str], name: str | None
) -> None:
    assert detect_container(build(tmp_path, files)[0]) == name


@pytest.mark.parametrize("quota", ["-1", "garbage"])
def test_cpu_quota_is_none_without_cgroup_v1_limit(tmp_path: Path, quota: str) -> None:
    files = {**OLD_CONTAINER, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": f"{quota}\n"}
    assert cgroup_cpu_quota(*build(tmp_path, files)) is None


def test_device_info_of_raspberry_pi(tmp_path: Path) -> None:
    proc, sys_root = build(tmp_path, PI)
    facts = collect_device_info(proc, sys_root, "aarch64")
    assert not facts.emulated
    assert (facts.board, facts.cpu, facts.cpu_flags) == (
        "Raspberry Pi 4 Model B Rev 1.4",
        "Cortex-A72",
        ("asimd",),
    )
    assert (facts.frequency_limits_khz, facts.swap_total_bytes) == (
        (600_000, 1_800_000),
        102_396 * 1024,
    )
    assert fastest_core_frequency_khz(sys_root) == 1_500_000


def test_cpu_name_falls_back_to_hardware_field(tmp_path: Path) -> None:
    files = {**PI, "proc/cpuinfo": PI["proc/cpuinfo"].replace("0xd08", "0xfff")}
    assert collect_device_info(*build(tmp_path, files)).cpu == "BCM2835"


def test_cpu_name_joins_big_and_little_cores(tmp_path: Path) -> None:
    cores = "".join(
        f"CPU implementer\t: 0x41\nCPU part\t: {part}\n" for part in ("0xd05", "0xd05", "0xd0b")
    )
    assert (
        collect_device_info(*build(tmp_path, {"proc/cpuinfo": cores})).cpu
        == "Cortex-A55 + Cortex-A76"
    )


def test_device_info_of_jetson(tmp_path: Path) -> None:
    facts = collect_device_info(*build(tmp_path, JETSON), "aarch64")
    assert not facts.emulated
    assert (facts.cpu, facts.cpu_flags) == (
        "Cortex-A78AE",
        ("asimd", "fphp", "asimdhp", "asimddp"),
    )
    assert (facts.gpus, facts.gpu_driver, facts.power_mode) == (
        ("NVIDIA ga10b",),
        "L4T 36.4.3",
        "MAXN_SUPER",
    )


def test_power_mode_falls_back_to_number(tmp_path: Path) -> None:
    files = {**JETSON, "var/lib/nvpmodel/status": "pmode:0007\n"}
    assert collect_device_info(*build(tmp_path, files)).power_mode == "7"


def test_device_info_of_laptop(tmp_path: Path) -> None:
    facts = collect_device_info(*build(tmp_path, LAPTOP))
    assert (facts.cpu, facts.cpu_flags) == ("Imaginary Core i7", ("avx2", "fma", "avx_vnni"))
    assert facts.container is None


@pytest.mark.parametrize(
    ("files", "version"),
    [
        ({"sys/module/nvidia/version": "570.86.15\n"}, "570.86.15"),
        (
            {
                "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  "
                "535.129.03  Thu Oct 19\n"
            },
            "535.129.03",
        ),
        (
            {
                "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for "
                "x86_64  570.86.10  Release\n"
            },
            "570.86.10",
        ),
    ],
)
def test_device_info_of_nvidia_gpu(tmp_path: Path, files: dict[str, str], version: str) -> None:
    card = {
        "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA Imaginary 9\nIRQ:   1\n"
    }
    facts = collect_device_info(*build(tmp_path, {**VM, **card, **files}))
    assert (facts.gpus, facts.gpu_driver) == (("NVIDIA Imaginary 9",), version)


def test_device_info_is_none_when_not_reported(tmp_path: Path) -> None:
    proc, sys_root = build(tmp_path, {})
    facts = collect_device_info(proc, sys_root)
    unreported = (
        "board",
        "cpu",
        "cpu_flags",
        "cpu_quota",
        "memory_bytes",
        "swap_total_bytes",
        "frequency_limits_khz",
        "gpu_driver",
    )
    assert [getattr(facts, name) for name in (*unreported, "container", "power_mode")] == [
        None
    ] * 10
    assert cpu_cgroup_folders(proc, sys_root) == []
    assert available_cores(proc, sys_root) == len(os.sched_getaffinity(0))


def test_device_info_of_this_machine_is_json() -> None:
    facts = collect_device_info()
    assert facts.cores_available >= 1
    assert set(facts.cpu_flags or ()) <= cpu_flags()
    json.dumps(to_json(facts), allow_nan=False)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="no /proc here")
def test_peak_memory_excludes_parent_process() -> None:
    """getrusage in a small child of a large parent would report the parent's memory."""
    script = (
        "import subprocess, sys; "
        "block = bytearray(400_000_000); block[::4096] = b'x' * len(block[::4096]); "
        "code = 'from edgetl.device.hardware.info import peak_memory_bytes; "
        "print(peak_memory_bytes())'; "
        "command = [sys.executable, '-c', code]; "
        "print(subprocess.run(command, capture_output=True, text=True, check=True).stdout)"
    )
    root = str(Path(__file__).parents[3])
    process = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert 1_000_000 < int(process.stdout) < 200_000_000
    assert peak_memory_bytes() is not None


def test_installed_version_is_none_for_missing_package() -> None:
    assert installed_version("numpy")
    assert installed_version("surely-not-installed") is None
