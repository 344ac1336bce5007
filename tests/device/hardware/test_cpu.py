"""Detection of CPU emulation, and its effect on results and commands."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path

import pytest

from edgetl.core.artifacts.bench_json import read_result, write_result
from edgetl.core.artifacts.device import DeviceInfo
from edgetl.core.config.bench import Limits
from edgetl.device.bench import runner
from edgetl.device.hardware.cpu import EMULATED_ENV_VAR, is_emulated
from edgetl.device.hardware.info import collect_device_info
from tests.core.artifacts.test_limits import make_result, with_earlier_row
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
        # An emulator that also replaces /proc/cpuinfo.
        ({**PI, "proc/sys/kernel/arch": "x86_64\n"}, "aarch64", True),
        ({}, "aarch64", False),
    ],
)
def test_is_emulated_compares_kernel_and_machine(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, str],
    machine: str,
    expected: bool,
) -> None:
    monkeypatch.delenv(EMULATED_ENV_VAR, raising=False)
    assert is_emulated(build(tmp_path, files)[0], machine) is expected


def test_is_emulated_follows_environment_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proc, sys_root = build(tmp_path, LAPTOP)
    monkeypatch.setenv(EMULATED_ENV_VAR, "")
    assert not is_emulated(proc, "x86_64")
    monkeypatch.setenv(EMULATED_ENV_VAR, "1")
    assert collect_device_info(proc, sys_root, "x86_64").emulated


def test_device_description_names_emulated_machine() -> None:
    device = DeviceInfo(board="Imaginary Server", cpu="Cortex-A72", machine="aarch64")
    assert device.description == "Imaginary Server"
    assert replace(device, emulated=True).description == "emulated aarch64 (Cortex-A72)"


def test_emulated_result_decides_no_limit_or_comparison(tmp_path: Path) -> None:
    result = replace(make_result(), limits=Limits(max_p99_ms=1000.0, min_speedup=1.1))
    assert [check.outcome for check in result.limit_checks] == ["held", "held"]
    assert result.comparisons[0].verdict == "faster"
    emulated = replace(result, device=DeviceInfo(machine="aarch64", emulated=True))
    write_result(emulated, tmp_path / "result.json")
    for emulated_result in (emulated, read_result(tmp_path / "result.json")):
        checks = emulated_result.limit_checks
        assert emulated_result.is_emulated
        assert [check.outcome for check in checks] == ["undecided", "undecided"]
        assert all("measure on the device" in check.why for check in checks)
        assert [pair.verdict for pair in emulated_result.comparisons] == ["noisy"]
    assert (
        replace(with_earlier_row(8.0), device=DeviceInfo(emulated=True)).comparisons[-1].verdict
        == "noisy"
    )


def test_bench_reports_emulation_as_first_noise_reason(
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
    result = runner.bench(config, protocol=short)
    assert result.device.emulated
    assert result.device.machine == platform.machine()
    assert (
        result.noise.reasons[0] == "the processor is emulated: times do not apply to real devices"
    )


def test_verify_command_reports_emulation(edgetl, stock_bundle: Path) -> None:  # type: ignore[no-untyped-def]
    message = "This CPU is emulated"
    assert message in edgetl("verify", stock_bundle, env={EMULATED_ENV_VAR: "1"}).stdout
    assert message not in edgetl("verify", stock_bundle, env={EMULATED_ENV_VAR: ""}).stdout
