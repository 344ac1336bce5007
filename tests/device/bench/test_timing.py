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
    """A clock that only moves when a step takes time."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now

    def step(self, durations: Iterator[int]) -> Callable[[object], object]:
        def take(value: object) -> object:
            self.now += next(durations)
            return value

        return take


def test_a_steady_step_ends_its_warm_up_after_two_windows() -> None:
    time = FakeTime()
    block = measure([("infer", time.step(repeat(1000)))], ["a"], PROTOCOL, clock=time)
    assert (block.steady, block.warmup_medians_ns) == (True, [1000, 1000])
    assert set(block.latencies_ns) == {1000}
    assert len(block.latencies_ns) == 1000, "1 ms at 1 us a run"
    assert block.stages_ns == {}


def test_a_slow_step_still_gets_its_runs() -> None:
    time = FakeTime()
    assert (
        len(
            measure([("infer", time.step(repeat(10**9)))], ["a"], PROTOCOL, clock=time).latencies_ns
        )
        == PROTOCOL.block_runs
    )


def test_warm_up_waits_until_windows_agree() -> None:
    time = FakeTime()
    falling = chain([9000] * 4, [5000] * 4, [4000] * 4, repeat(3990))
    block = measure([("infer", time.step(falling))], ["a"], PROTOCOL, clock=time)
    assert (block.steady, block.warmup_medians_ns) == (True, [9000, 5000, 4000, 3990])
    assert max(block.latencies_ns) == 3990, "nothing of the warm-up is counted"


def test_what_never_settles_is_measured_and_marked() -> None:
    time = FakeTime()
    block = measure(
        [("infer", time.step(iter(range(1000, 10**9, 500))))], ["a"], PROTOCOL, clock=time
    )
    assert not block.steady
    assert len(block.warmup_medians_ns) == PROTOCOL.max_windows
    assert len(block.latencies_ns) >= PROTOCOL.block_runs


def test_a_warm_up_that_takes_too_long_is_cut_off_after_two_windows() -> None:
    time = FakeTime()
    block = measure(
        [("infer", time.step(iter(range(10**9, 10**12, 10**8))))],
        ["a"],
        replace(PROTOCOL, warmup_seconds=0.5),
        clock=time,
    )
    assert not block.steady
    assert len(block.warmup_medians_ns) == 2


def test_stages_add_up_to_the_latency() -> None:
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


def test_inputs_take_turns_and_stages_feed_each_other() -> None:
    time, seen = FakeTime(), []

    def watch(value: str) -> None:
        time.now += 1000
        seen.append(value)

    measure([("decode", str.upper), ("infer", watch)], ["a", "b", "c"], PROTOCOL, clock=time)
    assert seen[:4] == ["A", "B", "C", "A"]
    assert set(seen) == {"A", "B", "C"}


def paced(durations: Iterator[int], rate: float, seconds: float = 0.1, runs: int = 5) -> TimedBlock:
    time = FakeTime()

    def sleep(length: float) -> None:
        # Timers are late, never early.
        time.now += round(length * 1e9) + 70

    protocol = replace(PROTOCOL, paced_seconds=seconds, paced_runs=runs)
    return measure_paced(
        [("inference", time.step(durations))], ["a", "b"], protocol, rate, clock=time, sleep=sleep
    )


def test_between_arrivals_it_sleeps_and_the_timers_delay_does_not_count() -> None:
    block = paced(repeat(1_000_000), rate=100)
    assert set(block.latencies_ns) == {1_000_000}
    assert len(block.latencies_ns) == 10, "0.1 s at 100 a second"
    assert block.waited == 0


def test_an_arrival_that_waits_counts_its_waiting() -> None:
    block = paced(chain([1_000_000, 25_000_000], repeat(1_000_000)), rate=100)
    # The second takes 25 ms; the third, due 10 ms after it, waits 15 (and the timer's 70 ns), the fourth 6.
    assert block.latencies_ns[1] == 25_000_000
    assert block.latencies_ns[2] == 16_000_070
    assert block.latencies_ns[3] == 7_000_070
    assert block.latencies_ns[4] == 1_000_000
    assert block.waited == 2


def test_a_runtime_that_cannot_keep_up_does_not_look_fast() -> None:
    block = paced(repeat(20_000_000), rate=100, runs=10)
    assert block.waited == 9
    assert block.latencies_ns[-1] == 20_000_000 + 9 * 10_000_000


def test_few_arrivals_still_make_a_block() -> None:
    assert len(paced(repeat(1000), rate=1, seconds=0.0, runs=5).latencies_ns) == 5


def test_the_watch_sees_the_block_and_not_the_warm_up() -> None:
    time, seen = FakeTime(), []

    class Watch:
        def start(self) -> None:
            seen.append(time.now)

        def stop(self) -> None:
            seen.append(time.now)

    block = measure([("inference", time.step(repeat(1000)))], ["a"], PROTOCOL, Watch(), clock=time)
    assert seen[1] - seen[0] == sum(block.latencies_ns)
    assert seen[0] == 2 * PROTOCOL.window_runs * 1000


def test_a_block_is_measured_in_slices_each_after_a_few_runs_that_do_not_count() -> None:
    time, seen = FakeTime(), []
    protocol = replace(PROTOCOL, slices=3, block_seconds=0.00003, block_runs=9, slice_warm_runs=2)

    def step(value: str) -> None:
        time.now += 1000
        seen.append(value)

    measurement = BlockTimer([("inference", step)], ["a", "b", "c", "d"], protocol, clock=time)
    measurement.warm_up()
    seen.clear()
    for _ in range(3):
        measurement.run_slice()
    block = measurement.to_block()
    assert block.slices == [10, 10, 10]
    assert len(block.latencies_ns) == 30
    assert len(seen) == 30 + 2 * 2
    assert seen[12] == "c", "the inputs go on where the last slice ended"
