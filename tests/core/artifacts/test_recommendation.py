from __future__ import annotations

from dataclasses import replace

from edgetl.core.artifacts.bench_rows import BenchRow
from edgetl.core.artifacts.recommendation import recommend
from tests.core.artifacts.test_bench import block, row

EIGHT = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 1.0, 1.01]


def configuration(
    milliseconds: float,
    threads: int = 2,
    batch: int = 1,
    noise: float = 1.0,
    size: int = 1000,
    variant: str = "fp32",
) -> BenchRow:
    rounds = tuple(block(int(milliseconds * 1e6 * (1 + noise * (factor - 1)))) for factor in EIGHT)
    return replace(
        row("onnxruntime", []),
        variant=variant,
        threads=threads,
        batch=batch,
        file_bytes=size,
        rounds=rounds,
    )


def test_recommends_fastest_with_session_options() -> None:
    chosen = recommend(
        [configuration(4.0), configuration(2.0, variant="int8"), row("pytorch", [10**6] * 8)]
    )
    assert chosen is not None
    assert chosen.latency.row == "onnxruntime-int8-model-cpu-b1-t2"
    assert (
        chosen.latency.options["intra_op_num_threads"],
        chosen.latency.options["inter_op_num_threads"],
    ) == (2, 1)
    assert chosen.latency.as_fast == ()


def test_prefers_fewer_threads_when_not_slower() -> None:
    # Noise that the rounds do not share, and a hundredth of a difference.
    four, one = configuration(2.0, threads=4), configuration(2.01, threads=1, noise=-3.0)
    chosen = recommend([four, one])
    assert chosen is not None
    assert chosen.latency.row == one.id
    assert chosen.latency.as_fast == (four.id,)


def test_prefers_faster_row_when_difference_is_shown() -> None:
    four, one = configuration(2.0, threads=4), configuration(3.0, threads=1)
    chosen = recommend([four, one])
    assert chosen is not None
    assert chosen.latency.row == four.id


def test_median_averages_middle_rounds_when_even() -> None:
    uneven, even = (
        row("onnxruntime", [1_000_000, 1_000_000, 3_000_000, 3_000_000]),
        row("onnxruntime", [2_200_000] * 4),
    )
    chosen = recommend([replace(even, variant="other"), uneven])
    assert chosen is not None
    assert (chosen.latency.row, chosen.latency.as_fast) == (
        uneven.id,
        (replace(even, variant="other").id,),
    )


def test_throughput_may_recommend_larger_batch() -> None:
    chosen = recommend([configuration(2.0), configuration(10.0, batch=8)])
    assert chosen is not None
    assert (chosen.latency.row[-5:], chosen.throughput.row[-5:]) == ("b1-t2", "b8-t2")


def test_ignores_failed_gates_other_scopes_and_paced_rows() -> None:
    wrong = replace(configuration(1.0, variant="int8"), gate={"checked": True, "passed": False})
    photo = replace(configuration(0.5, variant="x"), scope="file")
    paced = replace(configuration(0.4, variant="y"), rate=30.0)
    chosen = recommend([configuration(2.0), wrong, photo, paced])
    assert chosen is not None
    assert chosen.latency.row == "onnxruntime-fp32-model-cpu-b1-t2"
    assert recommend([wrong]) is None
    assert recommend([row("pytorch", [10**6] * 8)]) is None
