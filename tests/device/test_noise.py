from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgetl.core.results import Noise
from edgetl.device.facts import device_state
from edgetl.device.noise import judge
from tests.device.machines import CONTAINER, PI, STAT, VM, build


def later(tmp_path: Path, machine: dict[str, str], changes: dict[str, str], seconds: float = 10.0) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two readings of a machine, `seconds` apart, between which `changes` happened."""
    before = device_state(*build(tmp_path, machine))
    after = device_state(*build(tmp_path, changes))
    return before, {**after, "monotonic_s": before["monotonic_s"] + seconds}


def ticks(**changes: int) -> dict[str, str]:
    """VM's /proc/stat with so many ticks more; 2 cores for 10 s are 2000."""
    start = {"user": 10_000, "system": 1_000, "idle": 100_000, "steal": 200}
    return {"proc/stat": STAT.format(**{name: value + changes.get(name, 0) for name, value in start.items()})}


def judged(tmp_path: Path, changes: dict[str, str], own_cpu_s: float = 15.0, machine: dict[str, str] = VM, **more: Any) -> Noise:
    return judge(*later(tmp_path, machine, changes), own_cpu_s, more.pop("spreads", {"onnxruntime-fp32-model": 0.02}), **more)


def test_a_machine_left_alone_is_quiet(tmp_path: Path) -> None:
    noise = judged(tmp_path, ticks(user=1510, idle=490))
    assert noise.to_json()["verdict"] == "quiet"
    assert noise.measured["other_cpu"] == pytest.approx(0.005)
    assert noise.measured["seconds"] == pytest.approx(10)
    assert noise.measured["thermal_throttles"] is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (ticks(user=1700, idle=300), "other processes used 10% of the CPU"),
        (ticks(user=1500, idle=440, steal=60), "the hypervisor took 3.0% of the CPU"),
        ({**ticks(user=1500, idle=500), "proc/pressure/cpu": "some avg10=0 total=4000000\n"}, "waited for a core 30%"),
        ({**ticks(user=1500, idle=500), "proc/pressure/memory": "some avg10=0 total=500000\n"}, "waited for memory 5%"),
    ],
)
def test_each_disturbance_is_named(tmp_path: Path, changes: dict[str, str], reason: str) -> None:
    noise = judged(tmp_path, changes)
    assert len(noise.reasons) == 1
    assert reason in noise.reasons[0]
    assert noise.to_json()["verdict"] == "noisy"


def test_the_benchmarks_own_work_is_no_noise(tmp_path: Path) -> None:
    busy = ticks(user=1990, idle=10)
    assert not judged(tmp_path / "own", busy, own_cpu_s=19.9).noisy
    assert judged(tmp_path / "others", busy, own_cpu_s=10.0).noisy


def test_a_throttled_container(tmp_path: Path) -> None:
    changes = {"sys/fs/cgroup/work/pod7/cpu.stat": "nr_periods 95\nnr_throttled 14\nthrottled_usec 3000000\n", **ticks(user=1500, idle=500)}
    noise = judged(tmp_path, changes, machine=CONTAINER)
    assert noise.reasons == ("the CPU quota throttled 4 periods (0.5 s)",)


def test_a_hot_board(tmp_path: Path) -> None:
    changes = {
        "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "performance\n",
    }
    noise = judge(*later(tmp_path, PI, changes), 0.0, {}, [1_500_000, 1_500_000, 1_200_000])
    words = "; ".join(noise.reasons)
    assert "firmware reports throttling" in words
    assert "clock varied by 20%" in words
    assert "governor was changed" in words


def test_what_the_firmware_saw_before_does_not_count(tmp_path: Path) -> None:
    assert judge(*later(tmp_path, PI, {}), 0.0, {}, [1_500_000]).reasons == ()


def test_rounds_that_disagree(tmp_path: Path) -> None:
    noise = judged(tmp_path, ticks(user=1500, idle=500), spreads={"a": 0.03, "b": 0.25})
    assert noise.reasons == ("the rounds of b differ by 25%",)


def test_a_machine_that_tells_nothing_is_judged_by_its_rounds(tmp_path: Path) -> None:
    before, after = later(tmp_path, {}, {})
    noise = judge(before, after, 5.0, {"a": 0.01})
    assert not noise.noisy
    assert noise.measured["other_cpu"] is None
    assert judge(before, after, 5.0, {"a": 0.5}).noisy
