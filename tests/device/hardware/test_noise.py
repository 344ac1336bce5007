from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgetl.core.artifacts.bench_rows import GpuReading
from edgetl.core.artifacts.device import DeviceState
from edgetl.core.artifacts.noise import NoiseReport
from edgetl.device.hardware.noise import assess_noise
from edgetl.device.hardware.nvml import Nvml
from edgetl.device.hardware.state import read_device_state
from tests.helpers.gpus import FakePynvml, gpu_reading
from tests.helpers.machines import CONTAINER, JETSON, LAPTOP, PI, STAT, VM, build


def read_states(
    tmp_path: Path, machine: dict[str, str], changes: dict[str, str], seconds: float = 10.0
) -> tuple[DeviceState, DeviceState]:
    """Return a machine's states before and after `changes`, `seconds` apart."""
    before = read_device_state(*build(tmp_path, machine))
    after = read_device_state(*build(tmp_path, changes))
    return before, replace(after, monotonic_s=before.monotonic_s + seconds)


def ticks(**changes: int) -> dict[str, str]:
    """Return the VM's /proc/stat with additional ticks; 2 cores have 2000 in 10 s."""
    initial = {"user": 10_000, "system": 1_000, "idle": 100_000, "steal": 200}
    values = {name: value + changes.get(name, 0) for name, value in initial.items()}
    return {"proc/stat": STAT.format(**values)}


def assess(
    tmp_path: Path,
    changes: dict[str, str],
    bench_cpu_s: float = 15.0,
    machine: dict[str, str] = VM,
    **options: Any,
) -> NoiseReport:
    return assess_noise(
        *read_states(tmp_path, machine, changes),
        bench_cpu_s,
        options.pop("spreads", {"onnxruntime-fp32-model": 0.02}),
        **options,
    )


def test_noise_is_quiet_on_idle_machine(tmp_path: Path) -> None:
    noise = assess(tmp_path, ticks(user=1510, idle=490))
    assert noise.verdict == "quiet"
    assert noise.measured.other_cpu == pytest.approx(0.005)
    assert noise.measured.seconds == pytest.approx(10)
    assert noise.measured.thermal_throttles is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (ticks(user=1700, idle=300), "other processes used 10% of the CPU"),
        (ticks(user=1500, idle=440, steal=60), "the hypervisor took 3.0% of the CPU"),
        (
            {**ticks(user=1500, idle=500), "proc/pressure/cpu": "some avg10=0 total=4000000\n"},
            "waited for a core 30%",
        ),
        (
            {**ticks(user=1500, idle=500), "proc/pressure/memory": "some avg10=0 total=500000\n"},
            "waited for memory 5%",
        ),
    ],
)
def test_noise_reports_each_disturbance(
    tmp_path: Path, changes: dict[str, str], reason: str
) -> None:
    noise = assess(tmp_path, changes)
    assert len(noise.reasons) == 1
    assert reason in noise.reasons[0]
    assert noise.verdict == "noisy"


def test_noise_excludes_benchmark_cpu_time(tmp_path: Path) -> None:
    busy = ticks(user=1990, idle=10)
    assert not assess(tmp_path / "benchmark", busy, bench_cpu_s=19.9).is_noisy
    assert assess(tmp_path / "others", busy, bench_cpu_s=10.0).is_noisy


def test_noise_reports_throttled_container(tmp_path: Path) -> None:
    changes = {
        "sys/fs/cgroup/work/pod7/cpu.stat": "nr_periods 95\nnr_throttled 14\nthrottled_usec 3000000\n",
        **ticks(user=1500, idle=500),
    }
    noise = assess(tmp_path, changes, machine=CONTAINER)
    assert noise.reasons == ("the CPU quota throttled 4 periods (0.5 s)",)


def test_noise_reports_firmware_throttling_and_clock(tmp_path: Path) -> None:
    changes = {
        "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "performance\n",
    }
    noise = assess_noise(
        *read_states(tmp_path, PI, changes), 0.0, {}, [[1_500_000, 1_500_000, 1_200_000], [900_000]]
    )
    reasons = "; ".join(noise.reasons)
    assert "the firmware reports low voltage, throttling;" in reasons
    assert "clock varied by 20%" in reasons
    assert "the frequency governor changed" in reasons


def test_noise_ignores_earlier_firmware_throttling(tmp_path: Path) -> None:
    assert (
        assess_noise(*read_states(tmp_path, PI, {}), 0.0, {}, [[1_500_000], [900_000], []]).reasons
        == ()
    )


FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("0", "80000", "the firmware reports the soft temperature limit"),
        ("50000", "70000", "the firmware reports a capped clock"),
        ("10001", "10000", "the firmware reports low voltage"),
        ("0", "40004", "the firmware reports throttling"),
        ("", "50000", None),
        ("50000", "", None),
        ("50000", "garbage", None),
    ],
)
def test_noise_reports_firmware_throttling_during_run(
    tmp_path: Path, before: str, after: str, reason: str | None
) -> None:
    noise = assess_noise(
        *read_states(tmp_path, {**PI, FIRMWARE: before}, {FIRMWARE: after}), 0.0, {}
    )
    assert noise.reasons == (() if reason is None else (reason,))


def test_noise_reports_jetson_over_current(tmp_path: Path) -> None:
    events = {"sys/class/hwmon/hwmon3/oc3_event_cnt": "30\n"}
    noise = assess_noise(*read_states(tmp_path, JETSON, events), 0.0, {})
    assert noise.reasons == ("the board throttled itself 28 times (over-current or low voltage)",)
    assert noise.measured.over_current_events == 28
    changed = assess_noise(
        *read_states(tmp_path, JETSON, {**events, "var/lib/nvpmodel/status": "pmode:0000\n"}),
        0.0,
        {},
    )
    assert "the power mode changed during the run" in changed.reasons


def test_noise_reports_battery(tmp_path: Path) -> None:
    assert assess_noise(*read_states(tmp_path, LAPTOP, {}), 0.0, {}).reasons == (
        "it ran on battery",
    )
    plugged = {
        "sys/class/power_supply/AC/online": "1\n",
        "sys/devices/system/cpu/intel_pstate/no_turbo": "1\n",
    }
    reasons = assess_noise(*read_states(tmp_path, LAPTOP, plugged), 0.0, {}).reasons
    assert reasons == (
        "turbo changed during the run",
        "the power source changed during the run",
        "it ran on battery",
    )


def test_noise_counts_thermal_throttling_once_per_core(tmp_path: Path) -> None:
    hot = {
        f"sys/devices/system/cpu/cpu{core}/thermal_throttle/core_throttle_count": "5\n"
        for core in (0, 1)
    }
    machine = {**LAPTOP, "sys/class/power_supply/AC/online": "1\n"}
    assert assess_noise(*read_states(tmp_path, machine, hot), 0.0, {}).reasons == (
        "the processor throttled itself 4 times (heat)",
    )


@pytest.mark.parametrize(
    ("free", "noisy"), [(92_396, False), (92_300, False), (72_396, True), (102_396, False)]
)
def test_noise_reports_swap_growth(tmp_path: Path, free: int, noisy: bool) -> None:
    changes = {"proc/meminfo": f"MemTotal: 948000 kB\nSwapTotal: 102396 kB\nSwapFree: {free} kB\n"}
    noise = assess_noise(*read_states(tmp_path, PI, changes), 0.0, {})
    assert noise.reasons == (("swap grew by 20 MiB",) if noisy else ())


@pytest.mark.parametrize(
    ("machine", "changes", "bench_cpu_s", "share"),
    [
        (VM, ticks(user=1700, idle=300), 15.0, 0.10),
        (VM, ticks(user=1500, idle=440, steal=60), 15.0, 0.03),
        (
            VM,
            {**ticks(user=1500, idle=500), "proc/pressure/cpu": "some avg10=0 total=4000000\n"},
            15.0,
            0.30,
        ),
        (
            CONTAINER,
            {"sys/fs/cgroup/work/pod7/cpu.stat": "nr_throttled 14\nthrottled_usec 7500000\n"},
            0.0,
            0.5,
        ),
        (
            CONTAINER,
            {"sys/fs/cgroup/work/pod7/cpu.stat": "nr_throttled 14\nthrottled_usec 92500000\n"},
            0.0,
            1.0,
        ),
        ({}, {}, 0.0, 0.0),
    ],
)
def test_disturbance_is_largest_share(
    tmp_path: Path,
    machine: dict[str, str],
    changes: dict[str, str],
    bench_cpu_s: float,
    share: float,
) -> None:
    noise = assess_noise(*read_states(tmp_path, machine, changes), bench_cpu_s, {})
    assert noise.measured.disturbance == pytest.approx(share)
    assert isinstance(noise.measured.disturbance, float)


def test_noise_reports_spread_of_rounds(tmp_path: Path) -> None:
    noise = assess(tmp_path, ticks(user=1500, idle=500), spreads={"a": 0.03, "b": 0.25})
    assert noise.reasons == ("the rounds of b differ by 25%",)


def test_noise_uses_rounds_when_state_is_unknown(tmp_path: Path) -> None:
    before, after = read_states(tmp_path, {}, {})
    noise = assess_noise(before, after, 5.0, {"a": 0.01})
    assert not noise.is_noisy
    assert noise.measured.other_cpu is None
    assert assess_noise(before, after, 5.0, {"a": 0.5}).is_noisy


def with_gpus(state: DeviceState, *processes: int) -> DeviceState:
    """Return a device state whose first GPU runs these processes."""
    library = FakePynvml()
    library.processes = list(processes)
    states = Nvml(library).read_states()
    return replace(state, gpus={str(index): gpu for index, gpu in enumerate(states)})


def assess_gpu(
    tmp_path: Path, *readings: GpuReading, processes: tuple[int, ...] = ()
) -> NoiseReport:
    before, after = read_states(tmp_path, {}, {})
    return assess_noise(
        with_gpus(before),
        with_gpus(after, *processes),
        0.0,
        {},
        gpu_rounds=[readings] if readings else [],
    )


def test_noise_is_quiet_on_steady_gpu(tmp_path: Path) -> None:
    # The power cap and idling belong to normal work.
    noise = assess_gpu(
        tmp_path,
        gpu_reading(throttle_reasons=("sw power cap",)),
        gpu_reading(sm_clocks_mhz=(1950,), throttle_reasons=("gpu idle",)),
    )
    assert noise.reasons == ()
    assert noise.measured.gpu_throttle_reasons == ("gpu idle", "sw power cap")
    assert noise.measured.gpu_clock_spread == pytest.approx(30 / 1980)
    assert noise.measured.gpu_other_processes == ()


@pytest.mark.parametrize(
    "reason",
    ["hw slowdown", "sw thermal slowdown", "hw thermal slowdown", "hw power brake slowdown"],
)
def test_noise_reports_throttled_gpu(tmp_path: Path, reason: str) -> None:
    assert assess_gpu(tmp_path, gpu_reading(throttle_reasons=(reason,))).reasons == (
        f"the GPU was throttled ({reason})",
    )


def test_noise_reports_varying_gpu_clock(tmp_path: Path) -> None:
    noise = assess_gpu(tmp_path, gpu_reading(), gpu_reading(sm_clocks_mhz=(1485,)))
    assert noise.reasons == ("the GPU's clock varied by 25% within a row",)


def test_noise_compares_gpu_clocks_within_rows_only(tmp_path: Path) -> None:
    before, after = read_states(tmp_path, {}, {})
    rows = [[gpu_reading()], [gpu_reading(sm_clocks_mhz=(1200,))]]
    assert assess_noise(with_gpus(before), with_gpus(after), 0.0, {}, gpu_rounds=rows).reasons == ()


def test_noise_reports_other_gpu_processes(tmp_path: Path) -> None:
    noise = assess_gpu(tmp_path, gpu_reading(), processes=(4_194_305, os.getpid()))
    assert noise.reasons == ("1 other process used the GPU",)
    assert noise.measured.gpu_other_processes == (4_194_305,)


def test_noise_ignores_unmeasured_gpu(tmp_path: Path) -> None:
    noise = assess_gpu(tmp_path, processes=(4_194_305,))
    assert noise.reasons == ()
    assert (noise.measured.gpu_clock_spread, noise.measured.gpu_other_processes) == (
        None,
        None,
    )
    assert (
        assess_gpu(
            tmp_path, gpu_reading(index=1), processes=(4_194_305,)
        ).measured.gpu_other_processes
        is None
    )
