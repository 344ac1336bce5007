from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, repeat

from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.bench.timing import BlockTimer, TimedBlock, measure, measure_paced

PROTOCOL = BenchProtocol(
    slices=1, block_seconds=0.001, block_runs=7, window_seconds=0.0, window_runs=4, max_windows=5
)


class FakeTime:
    """Clock that advances only when a stage runs."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now

    def step(self, durations: Iterator[int]) -> Callable[[object], object]:
        def run_stage(value: object) -> object:
            self.now += next(durations)
            return value

        return run_stage


def test_warm_up_ends_after_two_windows_when_steady() -> None:
    time = FakeTime()
    block = measure([("infer", time.step(repeat(1000)))], ["a"], PROTOCOL, clock=time)
    assert (block.steady, block.warmup_medians_ns) == (True, [1000, 1000])
    assert set(block.latencies_ns) == {1000}
    assert len(block.latencies_ns) == 1000, "1 ms at 1 us per run"
    assert block.stages_ns == {}


def test_slow_stage_gets_minimum_runs() -> None:
    time = FakeTime()
    block = measure([("infer", time.step(repeat(10**9)))], ["a"], PROTOCOL, clock=time)
    assert len(block.latencies_ns) == PROTOCOL.block_runs


def test_warm_up_continues_until_windows_agree() -> None:
    time = FakeTime()
    falling = chain([9000] * 4, [5000] * 4, [4000] * 4, repeat(3990))
    block = measure([("infer", time.step(falling))], ["a"], PROTOCOL, clock=time)
    assert (block.steady, block.warmup_medians_ns) == (True, [9000, 5000, 4000, 3990])
    assert max(block.latencies_ns) == 3990, "warm-up is not counted"


def test_unsteady_stage_is_measured_and_marked() -> None:
    time = FakeTime()
    block = measure(
        [("infer", time.step(iter(range(1000, 10**9, 500))))], ["a"], PROTOCOL, clock=time
    )
    assert not block.steady
    assert len(block.warmup_medians_ns) == PROTOCOL.max_windows
    assert len(block.latencies_ns) >= PROTOCOL.block_runs


def test_slow_warm_up_stops_after_two_windows() -> None:
    time = FakeTime()
    block = measure(
        [("infer", time.step(iter(range(10**9, 10**12, 10**8))))],
        ["a"],
        replace(PROTOCOL, warmup_seconds=0.5),
        clock=time,
    )
    assert not block.steady
    assert len(block.warmup_medians_ns) == 2


def test_stage_times_sum_to_latency() -> None:
    time = FakeTime()
    block = measure(
        [("decode", time.step(repeat(300))), ("infer", time.step(repeat(700)))],
        ["a"],
        PROTOCOL,
        clock=time,
    )
    assert set(block.latencies_ns) == {1000}
    assert {name: set(times) for name, times in block.stages_ns.items()} == {
        "decode": {300},
        "infer": {700},
    }
    assert len(block.stages_ns["decode"]) == len(block.latencies_ns)


def test_inputs_rotate_through_chained_stages() -> None:
    time = FakeTime()
    inputs = []

    def record(value: str) -> None:
        time.now += 1000
        inputs.append(value)

    measure([("decode", str.upper), ("infer", record)], ["a", "b", "c"], PROTOCOL, clock=time)
    assert inputs[:4] == ["A", "B", "C", "A"]
    assert set(inputs) == {"A", "B", "C"}


def measure_paced_block(
    durations: Iterator[int], rate: float, seconds: float = 0.1, runs: int = 5
) -> TimedBlock:
    time = FakeTime()

    def sleep(length: float) -> None:
        # Timers fire late, never early.
        time.now += round(length * 1e9) + 70

    protocol = replace(PROTOCOL, paced_seconds=seconds, paced_runs=runs)
    return measure_paced(
        [("inference", time.step(durations))], ["a", "b"], protocol, rate, clock=time, sleep=sleep
    )


def test_timer_delay_is_not_counted_as_latency() -> None:
    block = measure_paced_block(repeat(1_000_000), rate=100)
    assert set(block.latencies_ns) == {1_000_000}
    assert len(block.latencies_ns) == 10, "0.1 s at 100 per second"
    assert block.waited == 0


def test_waiting_arrival_counts_its_wait() -> None:
    block = measure_paced_block(chain([1_000_000, 25_000_000], repeat(1_000_000)), rate=100)
    # The second takes 25 ms. The third is due 10 ms after it and waits 15 ms (and the timer's
    # 70 ns), the fourth waits 6 ms.
    assert block.latencies_ns[1] == 25_000_000
    assert block.latencies_ns[2] == 16_000_070
    assert block.latencies_ns[3] == 7_000_070
    assert block.latencies_ns[4] == 1_000_000
    assert block.waited == 2


def test_overloaded_runtime_has_growing_latency() -> None:
    block = measure_paced_block(repeat(20_000_000), rate=100, runs=10)
    assert block.waited == 9
    assert block.latencies_ns[-1] == 20_000_000 + 9 * 10_000_000


def test_paced_block_has_minimum_arrivals() -> None:
    assert len(measure_paced_block(repeat(1000), rate=1, seconds=0.0, runs=5).latencies_ns) == 5


def test_monitor_covers_block_without_warm_up() -> None:
    time = FakeTime()
    times = []

    class FakeMonitor:
        def start(self) -> None:
            times.append(time.now)

        def stop(self) -> None:
            times.append(time.now)

    block = measure(
        [("inference", time.step(repeat(1000)))], ["a"], PROTOCOL, FakeMonitor(), clock=time
    )
    assert times[1] - times[0] == sum(block.latencies_ns)
    assert times[0] == 2 * PROTOCOL.window_runs * 1000


def test_slices_follow_untimed_runs() -> None:
    time = FakeTime()
    inputs = []
    protocol = replace(PROTOCOL, slices=3, block_seconds=0.00003, block_runs=9, slice_warm_runs=2)

    def run_stage(value: str) -> None:
        time.now += 1000
        inputs.append(value)

    timer = BlockTimer([("inference", run_stage)], ["a", "b", "c", "d"], protocol, clock=time)
    timer.warm_up()
    inputs.clear()
    for _ in range(3):
        timer.run_slice()
    block = timer.to_block()
    assert block.slices == [10, 10, 10]
    assert len(block.latencies_ns) == 30
    assert len(inputs) == 30 + 2 * 2
    assert inputs[12] == "c", "inputs continue after the last slice"
