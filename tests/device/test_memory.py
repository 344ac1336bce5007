from __future__ import annotations

from pathlib import Path

from edgetl.device.memory import free_memory_bytes


def test_what_is_free_is_what_kernel_and_cgroup_leave(tmp_path: Path) -> None:
    proc, sys = tmp_path / "proc", tmp_path / "sys"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 8000 kB\nMemFree: 10 kB\nMemAvailable: 4000 kB\n")
    (proc / "self/cgroup").write_text("0::/box\n")
    assert free_memory_bytes(proc, sys) == 4000 * 1024
    box = sys / "fs/cgroup/box"
    box.mkdir(parents=True)
    (box / "memory.max").write_text("max\n")
    (box / "memory.current").write_text("1000\n")
    (box / "memory.stat").write_text("anon 600\ninactive_file 300\n")
    assert free_memory_bytes(proc, sys) == 4000 * 1024
    (box / "memory.max").write_text("1000000\n")
    assert free_memory_bytes(proc, sys) == 999_300
    (box / "memory.current").write_text("2000000\n")
    assert free_memory_bytes(proc, sys) == 0


def test_where_nothing_says_it_a_modest_guess_is_taken(tmp_path: Path) -> None:
    assert free_memory_bytes(tmp_path, tmp_path) == 2 * 2**30
