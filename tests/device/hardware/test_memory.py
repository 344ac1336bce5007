from __future__ import annotations

from pathlib import Path

from edgetl.device.hardware.memory import free_memory_bytes


def test_free_memory_is_minimum_of_kernel_and_cgroup(tmp_path: Path) -> None:
    proc, sys = tmp_path / "proc", tmp_path / "sys"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 8000 kB\nMemFree: 10 kB\nMemAvailable: 4000 kB\n")
    (proc / "self/cgroup").write_text("0::/box\n")
    assert free_memory_bytes(proc, sys) == 4000 * 1024
    group = sys / "fs/cgroup/box"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("1000\n")
    (group / "memory.stat").write_text("anon 600\ninactive_file 300\n")
    assert free_memory_bytes(proc, sys) == 4000 * 1024
    (group / "memory.max").write_text("1000000\n")
    assert free_memory_bytes(proc, sys) == 999_300
    (group / "memory.current").write_text("2000000\n")
    assert free_memory_bytes(proc, sys) == 0


def test_free_memory_respects_cgroup_v1_limits(tmp_path: Path) -> None:
    proc, sys = tmp_path / "proc", tmp_path / "sys"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemAvailable: 4000 kB\n")
    (proc / "self/cgroup").write_text("4:memory:/outer/box\n3:cpu,cpuacct:/\n0::/\n")
    for folder, limit in (("", 2**63 - 4096), ("outer", 900_000), ("outer/box", 2**63 - 4096)):
        group = sys / "fs/cgroup/memory" / folder
        group.mkdir(parents=True)
        (group / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (group / "memory.usage_in_bytes").write_text("500000\n")
        (group / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 100000\n")
    assert free_memory_bytes(proc, sys) == 500_000


def test_free_memory_defaults_to_2_gib_when_unknown(tmp_path: Path) -> None:
    assert free_memory_bytes(tmp_path, tmp_path) == 2 * 2**30
