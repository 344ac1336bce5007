"""The worker process's side: LoadGen's test, and edgetl's own loop on both sides of it."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from statistics import quantiles
from typing import Any

import mlperf_loadgen

from edgetl.core.artifacts.loadgen_logs import TRACE_FILE
from edgetl.core.errors import BenchError, EdgetlError, error_to_json
from edgetl.device.bench.backend import Backend
from edgetl.device.bench.timing import BlockTimer, compute_latencies, run_for
from edgetl.device.bench.worker import open_backend, run_worker, write_answer
from edgetl.device.hardware.memory import free_memory_bytes, keep_freed_memory
from edgetl.device.loadgen.job import LoadgenJob, LoadgenPlan
from edgetl.device.loadgen.qsl import QuerySampleLibrary
from edgetl.device.loadgen.sut import SystemUnderTest, make_query_stage

SCENARIOS = {"single-stream": "SingleStream", "multi-stream": "MultiStream", "offline": "Offline"}
_MAX_OFFLINE_SAMPLES = 24576
"""MLPerf's rules: an offline run asks for every sample of the set, or for so many of a larger one."""
_BYTES_PER_SAMPLE = 350
"""That LoadGen holds for a sample it will ask for, before its test begins; measured with version 6.0.17: 80 to 320."""
_MAX_MEMORY_SHARE = 0.5
_OFFLINE_QPS_MARGIN = 1.25
"""LoadGen decides beforehand how many offline samples fill the time: so much faster may the device become."""


def run_loadgen(
    job: LoadgenJob, backend: Backend, leave: Callable[[EdgetlError], None]
) -> dict[str, Any]:
    """Run LoadGen's test in the mode asked for; its files lie in the plan's folder.

    Args:
        job: the model, the files and the plan.
        backend: the opened model.
        leave: ends the process with an error that the user can mend. Nothing may be raised through LoadGen's C++ code.

    Raises:
        BenchError: see `settings`.
    """
    plan, scope, batch = job.plan, job.streams[0].scope, job.source.batch
    assert job.source.preprocessing is not None
    keep_freed_memory()
    library = QuerySampleLibrary(job.files, scope, job.source.input, job.source.preprocessing)
    system = SystemUnderTest(backend, library, scope, batch, mlperf_loadgen)
    if plan.mode == "accuracy":
        _run_test(plan, len(job.files), library, system, leave)
        return {"issued": system.issued_samples}
    # Photos may differ in size: the loop answers the same ones that LoadGen asks for.
    queries = library.make_queries(plan.resident, plan.query_samples, batch)
    stages = [("query", make_query_stage(backend, scope, len(queries[0])))]
    loop = BlockTimer(stages, queries, job.protocol)
    loop.warm_up()
    before = compute_latencies(run_for(stages, queries, plan.loop_s, job.protocol.block_runs))
    # The fastest tenth: a device that is faster during the test must still be kept busy until its end.
    fastest_s = quantiles(before, n=10)[0] / 1e9
    _run_test(plan, len(job.files), library, system, leave, fastest_s)
    run_for(stages, queries, 0, job.protocol.slice_warm_runs)
    after = compute_latencies(run_for(stages, queries, plan.loop_s, job.protocol.block_runs))
    steady = loop.to_block().steady
    times = {
        "before_ns": before,
        "after_ns": after,
        "inside_ns": system.callback_ns,
        "model_ns": system.inference_ns,
    }
    return {**times, "issued": system.issued_samples, "steady": steady}


def make_test_settings(plan: LoadgenPlan, images: int, fastest_s: float | None) -> Any:
    """MLPerf's own settings of the scenario, as they come with LoadGen, and what is this run's.

    Args:
        plan: the run.
        images: of the whole sample set.
        fastest_s: the least time that a query of `plan.query_samples` images takes; None in accuracy mode.

    Raises:
        BenchError: this LoadGen brings no such settings, or there is no memory for that many queries.
    """
    chosen, name = mlperf_loadgen.TestSettings(), SCENARIOS[plan.scenario]
    # 0 stands for the mlperf.conf that is compiled into LoadGen: seeds, percentiles, query counts.
    if chosen.FromConfig("", "edgetl", name, 0) != 0:
        raise BenchError(
            "LoadGen could not read its own mlperf.conf. Install the version of mlcommons-loadgen that edgetl was tested with."
        )
    chosen.scenario = getattr(mlperf_loadgen.TestScenario, name)
    chosen.mode = (
        mlperf_loadgen.TestMode.AccuracyOnly
        if plan.mode == "accuracy"
        else mlperf_loadgen.TestMode.PerformanceOnly
    )
    chosen.min_duration_ms = max(1, round(plan.min_duration_s * 1000))
    if plan.scenario == "offline":
        chosen.min_query_count = min(images, _MAX_OFFLINE_SAMPLES)
    if fastest_s is not None:
        # LoadGen makes up its queries beforehand: twice as many as fit into the time at this latency.
        chosen.single_stream_expected_latency_ns = chosen.multi_stream_expected_latency_ns = (
            fastest_s * 1e9
        )
        chosen.offline_expected_qps = _OFFLINE_QPS_MARGIN * plan.query_samples / fastest_s
        planned = 2 * plan.query_samples * plan.min_duration_s / fastest_s
        if planned * _BYTES_PER_SAMPLE > _MAX_MEMORY_SHARE * free_memory_bytes():
            raise BenchError(
                f"LoadGen makes up its queries beforehand: {planned / 1e6:.0f} million samples for {plan.min_duration_s:g} s, "
                "more than there is memory for. Shorten --min-duration."
            )
    return chosen


def _run_test(
    plan: LoadgenPlan,
    images: int,
    library: QuerySampleLibrary,
    system: SystemUnderTest,
    leave: Callable[[EdgetlError], None],
    fastest_s: float | None = None,
) -> None:
    chosen = make_test_settings(plan, images, fastest_s)
    logs = mlperf_loadgen.LogSettings()
    logs.enable_trace = False
    logs.log_output.outdir = str(plan.folder)
    logs.log_output.copy_summary_to_stdout = False
    sut = mlperf_loadgen.ConstructSUT(
        _exit_on_error(system.issue_query, leave), _exit_on_error(system.flush_queries, leave)
    )
    library_ = mlperf_loadgen.ConstructQSL(
        images,
        plan.resident,
        _exit_on_error(library.load, leave),
        _exit_on_error(library.unload, leave),
    )
    # An audit.config that happens to lie in the user's folder would change the settings unseen.
    mlperf_loadgen.StartTestWithLogSettings(
        sut, library_, chosen, logs, str(plan.folder / "no-audit.config")
    )
    mlperf_loadgen.DestroyQSL(library_)
    mlperf_loadgen.DestroySUT(sut)
    (plan.folder / TRACE_FILE).unlink(missing_ok=True)


def _exit_on_error(
    call: Callable[..., None], leave: Callable[[EdgetlError], None]
) -> Callable[..., None]:
    def called(*arguments: Any) -> None:
        try:
            call(*arguments)
        except EdgetlError as error:
            leave(error)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)

    return called


def handle_loadgen(job: LoadgenJob) -> dict[str, Any]:
    """Run LoadGen's test with the job's model."""

    def leave(error: EdgetlError) -> None:
        write_answer({"error": error_to_json(error)})
        os._exit(0)

    return run_loadgen(job, open_backend(job), leave)


if __name__ == "__main__":
    run_worker(LoadgenJob, {"loadgen": handle_loadgen})
