"""Worker process of LoadGen: its test, with edgetl's own loop before and after it."""

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
from edgetl.core.typed_json import JsonObject, to_json
from edgetl.device.bench.backend import Backend
from edgetl.device.bench.timing import BlockTimer, compute_latencies, run_for
from edgetl.device.bench.worker import open_backend, run_worker, write_reply
from edgetl.device.hardware.memory import free_memory_bytes, keep_freed_memory
from edgetl.device.loadgen.job import LoadgenJob, LoadgenPlan, LoadgenReply
from edgetl.device.loadgen.qsl import QuerySampleLibrary
from edgetl.device.loadgen.sut import SystemUnderTest, make_query_stage

SCENARIOS = {"single-stream": "SingleStream", "multi-stream": "MultiStream", "offline": "Offline"}
_MAX_OFFLINE_SAMPLES = 24576
"""Samples of an offline run by MLPerf's rules, if the set is not smaller."""
_BYTES_PER_SAMPLE = 350
"""Memory LoadGen allocates per planned sample; 80 to 320 bytes were measured with 6.0.17."""
_MAX_MEMORY_SHARE = 0.5
_OFFLINE_QPS_MARGIN = 1.25
"""Allowed speed-up during an offline test, whose number of samples LoadGen fixes beforehand."""


def run_loadgen(
    job: LoadgenJob, backend: Backend, exit_with_error: Callable[[EdgetlError], None]
) -> LoadgenReply:
    """Run LoadGen's test in the plan's mode; its log files are written to the plan's folder.

    Args:
        job: the model, the files and the plan.
        backend: the open model.
        exit_with_error: writes an error as the result and ends the process, as no exception may
            pass through LoadGen's C++ code.

    Raises:
        BenchError: see `make_test_settings`.
    """
    plan = job.plan
    scope = job.streams[0].scope
    batch = job.source.batch
    assert job.source.preprocessing is not None
    keep_freed_memory()
    library = QuerySampleLibrary(job.files, scope, job.source.input, job.source.preprocessing)
    system = SystemUnderTest(backend, library, scope, batch, mlperf_loadgen)
    if plan.mode == "accuracy":
        _run_test(plan, len(job.files), library, system, exit_with_error)
        return LoadgenReply(system.issued_samples)
    # Photos may differ in size, so the loop uses the samples that LoadGen issues.
    queries = library.make_queries(plan.resident, plan.query_samples, batch)
    stages = [("query", make_query_stage(backend, scope, len(queries[0])))]
    loop = BlockTimer(stages, queries, job.protocol)
    loop.warm_up()
    before = compute_latencies(run_for(stages, queries, plan.loop_s, job.protocol.block_runs))
    # The first decile, so that a device that is faster during the test stays busy until its end.
    fastest_s = quantiles(before, n=10)[0] / 1e9
    _run_test(plan, len(job.files), library, system, exit_with_error, fastest_s)
    run_for(stages, queries, 0, job.protocol.slice_warm_runs)
    after = compute_latencies(run_for(stages, queries, plan.loop_s, job.protocol.block_runs))
    return LoadgenReply(
        issued=system.issued_samples,
        before_ns=tuple(before),
        after_ns=tuple(after),
        inside_ns=tuple(system.callback_ns),
        model_ns=tuple(system.inference_ns),
        steady=loop.to_block().steady,
    )


def make_test_settings(plan: LoadgenPlan, images: int, fastest_s: float | None) -> Any:
    """Return LoadGen's settings of the scenario: MLPerf's own, adapted to the plan.

    Args:
        plan: the test.
        images: number of images in the sample set.
        fastest_s: shortest time of a query of `plan.query_samples` images; None in accuracy mode.

    Raises:
        BenchError: LoadGen has no settings for the scenario, or the planned queries do not fit into
            memory.
    """
    settings = mlperf_loadgen.TestSettings()
    scenario = SCENARIOS[plan.scenario]
    # 0 is the mlperf.conf compiled into LoadGen: seeds, percentiles, query counts.
    if settings.FromConfig("", "edgetl", scenario, 0) != 0:
        raise BenchError(
            "LoadGen cannot read its built-in mlperf.conf. "
            "Install the version of mlcommons-loadgen that edgetl was tested with."
        )
    settings.scenario = getattr(mlperf_loadgen.TestScenario, scenario)
    settings.mode = (
        mlperf_loadgen.TestMode.AccuracyOnly
        if plan.mode == "accuracy"
        else mlperf_loadgen.TestMode.PerformanceOnly
    )
    settings.min_duration_ms = max(1, round(plan.min_duration_s * 1000))
    if plan.scenario == "offline":
        settings.min_query_count = min(images, _MAX_OFFLINE_SAMPLES)
    if fastest_s is not None:
        # LoadGen creates its queries beforehand, twice as many as fit into the time.
        fastest_ns = fastest_s * 1e9
        settings.single_stream_expected_latency_ns = fastest_ns
        settings.multi_stream_expected_latency_ns = fastest_ns
        settings.offline_expected_qps = _OFFLINE_QPS_MARGIN * plan.query_samples / fastest_s
        planned = 2 * plan.query_samples * plan.min_duration_s / fastest_s
        if planned * _BYTES_PER_SAMPLE > _MAX_MEMORY_SHARE * free_memory_bytes():
            raise BenchError(
                f"LoadGen's {planned / 1e6:.0f} million samples for {plan.min_duration_s:g} s "
                "do not fit into memory. Reduce --min-duration."
            )
    return settings


def _run_test(
    plan: LoadgenPlan,
    images: int,
    library: QuerySampleLibrary,
    system: SystemUnderTest,
    exit_with_error: Callable[[EdgetlError], None],
    fastest_s: float | None = None,
) -> None:
    settings = make_test_settings(plan, images, fastest_s)
    log_settings = mlperf_loadgen.LogSettings()
    log_settings.enable_trace = False
    log_settings.log_output.outdir = str(plan.folder)
    log_settings.log_output.copy_summary_to_stdout = False
    sut = mlperf_loadgen.ConstructSUT(
        _exit_on_error(system.issue_query, exit_with_error),
        _exit_on_error(system.flush_queries, exit_with_error),
    )
    qsl = mlperf_loadgen.ConstructQSL(
        images,
        plan.resident,
        _exit_on_error(library.load, exit_with_error),
        _exit_on_error(library.unload, exit_with_error),
    )
    # An audit.config in the user's working directory would silently change the settings.
    no_audit_file = str(plan.folder / "no-audit.config")
    mlperf_loadgen.StartTestWithLogSettings(sut, qsl, settings, log_settings, no_audit_file)
    mlperf_loadgen.DestroyQSL(qsl)
    mlperf_loadgen.DestroySUT(sut)
    (plan.folder / TRACE_FILE).unlink(missing_ok=True)


def _exit_on_error(
    callback: Callable[..., None], exit_with_error: Callable[[EdgetlError], None]
) -> Callable[..., None]:
    def run(*arguments: Any) -> None:
        try:
            callback(*arguments)
        except EdgetlError as error:
            exit_with_error(error)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)

    return run


def handle_loadgen(job: LoadgenJob) -> JsonObject:
    """Run LoadGen's test with the job's model."""

    def exit_with_error(error: EdgetlError) -> None:
        write_reply({"error": error_to_json(error)})
        os._exit(0)

    return to_json(run_loadgen(job, open_backend(job), exit_with_error))


if __name__ == "__main__":
    run_worker(LoadgenJob, {"loadgen": handle_loadgen})
