from __future__ import annotations

from dataclasses import replace

from edgetl.core.artifacts.bench_rows import BenchRow
from edgetl.core.artifacts.bundle import AccuracyRecord
from edgetl.core.artifacts.gate import GateResult
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
    recommendation = recommend(
        [configuration(4.0), configuration(2.0, variant="int8"), row("pytorch", [10**6] * 8)]
    )
    assert recommendation is not None
    assert recommendation.latency.row == "onnxruntime-int8-model-cpu-b1-t2"
    assert (
        recommendation.latency.options.intra_op_num_threads,
        recommendation.latency.options.inter_op_num_threads,
    ) == (2, 1)
    assert recommendation.latency.as_fast == ()


def test_prefers_fewer_threads_when_not_slower() -> None:
    # The noise of the two rows is not correlated, and exceeds their difference of 0.5%.
    four_threads = configuration(2.0, threads=4)
    one_thread = configuration(2.01, threads=1, noise=-3.0)
    recommendation = recommend([four_threads, one_thread])
    assert recommendation is not None
    assert recommendation.latency.row == one_thread.id
    assert recommendation.latency.as_fast == (four_threads.id,)


def test_prefers_faster_row_when_difference_is_shown() -> None:
    four_threads, one_thread = configuration(2.0, threads=4), configuration(3.0, threads=1)
    recommendation = recommend([four_threads, one_thread])
    assert recommendation is not None
    assert recommendation.latency.row == four_threads.id


def test_median_averages_middle_rounds_when_even() -> None:
    varying = row("onnxruntime", [1_000_000, 1_000_000, 3_000_000, 3_000_000])
    constant = replace(row("onnxruntime", [2_200_000] * 4), variant="other")
    recommendation = recommend([constant, varying])
    assert recommendation is not None
    assert (recommendation.latency.row, recommendation.latency.as_fast) == (
        varying.id,
        (constant.id,),
    )


def test_throughput_may_recommend_larger_batch() -> None:
    recommendation = recommend([configuration(2.0), configuration(10.0, batch=8)])
    assert recommendation is not None
    assert (recommendation.latency.row[-5:], recommendation.throughput.row[-5:]) == (
        "b1-t2",
        "b8-t2",
    )


def test_ignores_failed_gates_other_scopes_and_paced_rows() -> None:
    failed = replace(
        configuration(1.0, variant="int8"), gate=GateResult(checked=True, passed=False)
    )
    file_scope = replace(configuration(0.5, variant="x"), scope="file")
    paced = replace(configuration(0.4, variant="y"), rate=30.0)
    recommendation = recommend([configuration(2.0), failed, file_scope, paced])
    assert recommendation is not None
    assert recommendation.latency.row == "onnxruntime-fp32-model-cpu-b1-t2"
    assert recommend([failed]) is None
    assert recommend([row("pytorch", [10**6] * 8)]) is None


def accuracy(drop: float) -> AccuracyRecord:
    return AccuracyRecord("validation", 100, 0.9 - drop / 100, (0.8, 0.95), 0.9, drop, flips=2)


def test_leaves_out_rows_that_lost_accuracy() -> None:
    accurate = replace(configuration(3.0), accuracy=accuracy(0.0))
    inaccurate = replace(configuration(2.0, variant="int8"), accuracy=accuracy(1.4))

    recommendation = recommend([accurate, inaccurate])

    assert recommendation is not None
    assert recommendation.latency.row == accurate.id
    only = recommend([inaccurate])
    assert only is not None
    assert only.latency.row == inaccurate.id


def test_recommends_another_runtime_with_its_precision() -> None:
    row = configuration(2.0, variant="openvino-bf16")
    session = replace(row.session, precision="bf16")
    faster = replace(row, runtime="openvino", session=session, accuracy=accuracy(0.5))

    recommendation = recommend([configuration(4.0), faster])

    assert recommendation is not None
    options = recommendation.latency.options
    assert (options.runtime, options.variant) == ("openvino", "openvino-bf16")
    assert options.precision == "bf16"


def test_prefers_onnxruntime_unless_another_is_faster() -> None:
    plain = configuration(2.01, noise=-3.0, size=2000)
    fastest = replace(configuration(2.0), runtime="openvino")
    smallest = replace(configuration(2.02, noise=-3.0, size=10), runtime="executorch")

    equal = recommend([plain, fastest, smallest])
    without_plain = recommend([configuration(3.0), fastest, smallest])

    assert equal is not None
    assert equal.latency.row == plain.id
    assert without_plain is not None
    assert without_plain.latency.row == fastest.id
    assert without_plain.latency.as_fast == (smallest.id,)
