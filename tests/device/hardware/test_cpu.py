"""A processor that another one plays: told by the kernel's own files, and said wherever a time stands."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path

import pytest

from edgetl.core.artifacts.bench_json import read_bench_result, write_result
from edgetl.core.config.bench import Limits
from edgetl.core.formatting import describe_device
from edgetl.device.bench import runner as bench_run
from edgetl.device.hardware.cpu import EMULATED_ENV_VAR, is_emulated
from edgetl.device.hardware.info import collect_device_info
from tests.core.artifacts.test_limits import against, measured
from tests.helpers.machines import LAPTOP, PI, build

PC = {"proc/cpuinfo": "processor\t: 0\nmodel name\t: Imaginary Core i7\nflags\t\t: fpu sse2 avx2\n"}


@pytest.mark.parametrize(
    ("files", "machine", "expected"),
    [
        (PC, "aarch64", True),
        (PC, "armv7l", True),
        (PC, "x86_64", False),
        (PC, "i686", False),
        (PC, "riscv64", False),
        (PI, "aarch64", False),
        (PI, "armv7l", False),
        (PI, "x86_64", True),
        ({"proc/sys/kernel/arch": "x86_64\n"}, "aarch64", True),
        ({"proc/sys/kernel/arch": "aarch64\n"}, "armv8l", False),
        # An emulator that feigns /proc/cpuinfo.
        ({**PI, "proc/sys/kernel/arch": "x86_64\n"}, "aarch64", True),
        ({}, "aarch64", False),
    ],
)
def test_the_kernel_is_of_another_kind(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, str],
    machine: str,
    expected: bool,
) -> None:
    monkeypatch.delenv(EMULATED_ENV_VAR, raising=False)
    assert is_emulated(build(tmp_path, files)[0], machine) is expected


def test_the_environment_can_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc, sys_root = build(tmp_path, LAPTOP)
    monkeypatch.setenv(EMULATED_ENV_VAR, "")
    assert not is_emulated(proc, "x86_64")
    monkeypatch.setenv(EMULATED_ENV_VAR, "1")
    assert collect_device_info(proc, sys_root, "x86_64")["emulated"]


def test_it_is_called_emulated_and_not_by_its_hosts_board() -> None:
    device = {"board": "Imaginary Server", "cpu": "Cortex-A72", "machine": "aarch64"}
    assert describe_device(device) == "Imaginary Server"
    assert describe_device({**device, "emulated": True}) == "emulated aarch64 (Cortex-A72)"


def test_no_time_decides_anything(tmp_path: Path) -> None:
    result = replace(measured(), limits=Limits(max_p99_ms=1000.0, min_speedup=1.1))
    assert [judged.outcome for judged in result.limit_checks] == ["held", "held"]
    assert result.comparisons[0].verdict == "faster"
    there = replace(result, device={"machine": "aarch64", "emulated": True})
    write_result(there, tmp_path / "result.json")
    for one in (there, read_bench_result(tmp_path / "result.json")):
        assert one.is_emulated
        assert [judged.outcome for judged in one.limit_checks] == ["undecided", "undecided"]
        assert all("measure on the device" in judged.why for judged in one.limit_checks)
        assert [pair.verdict for pair in one.comparisons] == ["noisy"]
    assert replace(against(8.0), device={"emulated": True}).comparisons[-1].verdict == "noisy"


def test_a_result_says_so_first(
    stock_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgetl.core.config.bench import BenchConfig
    from edgetl.device.bench.protocol import BenchProtocol

    monkeypatch.setenv(EMULATED_ENV_VAR, "1")
    short = BenchProtocol(
        block_seconds=0.05,
        block_runs=5,
        slices=1,
        window_seconds=0.01,
        window_runs=2,
        max_windows=2,
    )
    config = BenchConfig(
        stock_bundle, scopes=("model",), torch_modes=(), rounds=2, output=tmp_path / "result.json"
    )
    result = bench_run.bench(config, protocol=short)
    assert result.device["emulated"]
    assert result.device["machine"] == platform.machine()
    assert result.noise.reasons[0] == "the processor is emulated: no time here is a device's"


def test_the_commands_say_so(edgetl, stock_bundle: Path) -> None:  # type: ignore[no-untyped-def]
    said = "This CPU is emulated"
    assert said in edgetl("verify", stock_bundle, env={EMULATED_ENV_VAR: "1"}).stdout
    assert said not in edgetl("verify", stock_bundle, env={EMULATED_ENV_VAR: ""}).stdout
