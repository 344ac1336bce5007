"""Synthetic bench results: two devices, a sweep, a sustained run, profiles and a failed gate."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

from edgetl.core.artifacts.bench import BenchedModel, BenchResult
from edgetl.core.artifacts.bench_rows import BenchRow, BlockResult, ColdStart
from edgetl.core.artifacts.bundle import AccuracyRecord
from edgetl.core.artifacts.comparison import Pair
from edgetl.core.artifacts.device import CpuTime, DeviceInfo, DeviceState, PressureStalls
from edgetl.core.artifacts.gate import GateResult
from edgetl.core.artifacts.noise import Interference, NoiseReport
from edgetl.core.artifacts.session import OperatorProfile, ProfiledOperator, SessionRecord
from edgetl.core.artifacts.sustained import LatencyWindow, SustainedResult
from edgetl.core.statistics import wilson_interval

GATE = GateResult(
    checked=True,
    passed=True,
    images=8,
    top1_agreement=8,
    max_logit_difference=1.2e-5,
    tolerance=0.05,
)
STAGES = {"file": {"read": 0.3, "decode": 1.8, "preprocess": 0.7}, "image": {"preprocess": 0.7}}


def bench_row(
    runtime: str,
    variant: str,
    p50_ms: float,
    scope: str = "model",
    batch: int = 1,
    threads: int = 2,
    rounds: int = 6,
    runs: int = 130,
    rate: float | None = None,
    **changes: Any,
) -> BenchRow:
    """Return a row with random latencies around `p50_ms`; `changes` replace other fields."""
    generator = random.Random(f"{runtime}{variant}{scope}{batch}{threads}{rate}")
    stages = STAGES.get(scope, {})
    blocks = []
    for index in range(rounds):
        center = p50_ms * (1 + 0.01 * math.sin(index) + generator.gauss(0, 0.006))
        tail = [
            generator.expovariate(3) * p50_ms if generator.random() < 0.04 else 0
            for _ in range(runs)
        ]
        infer = [int(1e6 * (center * generator.lognormvariate(0, 0.025) + extra)) for extra in tail]
        stages_ns = {
            name: tuple(int(1e6 * value * generator.lognormvariate(0, 0.05)) for _ in range(runs))
            for name, value in stages.items()
        }
        if stages:
            stages_ns["infer"] = tuple(infer)
        latencies = tuple(infer)
        if stages:
            latencies = tuple(map(sum, zip(*stages_ns.values(), strict=True)))
        cold = ColdStart(
            90.0 if runtime != "pytorch" else 1900.0,
            28.0,
            3 * p50_ms,
            140 * 2**20 if runtime != "pytorch" else None,
        )
        energy = {"rapl": 0.012 * p50_ms * runs} if runtime != "pytorch" else {}
        blocks.append(
            BlockResult(
                latencies,
                cold,
                index != 2 or batch < 8,
                (1.5, 2.5),
                stages_ns,
                2_400_000,
                waited=3 if rate else 0,
                memory_growth_bytes=2**20 * index if stages else None,
                energy_j=energy,
            )
        )
    fields: dict[str, Any] = {
        "provider": "cpu",
        "input": f"uint8 {batch}x256x256x3" if scope == "model" else "8 JPEG photos",
        "file_sha256": (variant.encode().hex() * 20)[:64],
        "file_bytes": {"fp32": 8_900_000, "int8": 2_400_000}.get(variant, 4_500_000),
        "gate": GATE,
        "session": SessionRecord(
            intra_op_threads=threads,
            graph_optimization="ORT_ENABLE_ALL",
            providers=("CPUExecutionProvider",),
        ),
    } | changes
    return BenchRow(
        runtime,
        variant,
        scope,
        batch=batch,
        threads=threads,
        rounds=tuple(blocks),
        rate=rate,
        **fields,
    )


def accuracy(top1: float, flips: int = 0, images: int = 220) -> AccuracyRecord:
    """Return the accuracy of a variant whose PyTorch model has 91.8%."""
    interval = wilson_interval(top1 * images, images)
    return AccuracyRecord("validation", images, top1, interval, top1, 100 * (0.918 - top1), flips)


def device(
    host: str | None = "bench", cpu: str | None = "Cortex-A76", **changes: Any
) -> DeviceInfo:
    """Return the device of a result; `changes` replace other fields."""
    state = DeviceState(
        monotonic_s=10.5,
        load=(0.1, 0.2, 0.3),
        cpu_seconds=CpuTime(busy=10.0, total=100.0, steal=0.0),
        pressure_us=PressureStalls(cpu=5, io=0),
        temperature_c=41.0,
        frequency_khz=2_400_000,
        governors=("schedutil",),
    )
    info = DeviceInfo(
        host=host,
        machine="aarch64",
        system="Linux 6.6",
        cpu=cpu,
        cores=4,
        cores_available=4,
        memory_bytes=8 * 2**30,
        python="3.12.3",
        packages={"numpy": "2.1.0", "onnxruntime": "1.23.0"},
        before=state,
        after=replace(state, monotonic_s=99.0, temperature_c=61.0),
    )
    return replace(info, **changes)


def sustained_run(row: BenchRow, windows: int = 120, sensors: bool = True) -> SustainedResult:
    """Return a sustained run of a row that throttles after 45 s if the device has sensors."""
    generator = random.Random(7)
    latency_windows = []
    for index in range(windows):
        divisor = 1 + math.exp(-(index - 45) / 7)
        throttling = 0.22 / divisor if sensors else 0.0
        warm_up = 0.35 * math.exp(-index / 2)
        center = row.round_medians_ns[0] * (1 + throttling + warm_up)
        latencies = tuple(int(center * generator.lognormvariate(0, 0.04)) for _ in range(40))
        clock_khz = int(2_400_000 - 400_000 / divisor) if sensors else None
        temperature_c = 45 + 30 * (1 - math.exp(-index / 30)) if sensors else None
        events = index // 60 if sensors else None
        window = LatencyWindow(
            float(index), latencies, clock_khz, temperature_c, events, 2**20 * 150
        )
        latency_windows.append(window)
    return SustainedResult(row.id, float(windows), tuple(latency_windows))


def bench_result(rows: tuple[BenchRow, ...], **changes: Any) -> BenchResult:
    """Return a result of the rows; `changes` replace other fields."""
    fields: dict[str, Any] = {
        "created": "2026-01-02T03:04:05+00:00",
        "edgetl": "0.1.0",
        "target": "runs/pets",
        "model": BenchedModel("mobilenet_v2", "0123456789ab"),
        "device": device(),
        "noise": NoiseReport(
            (),
            Interference(
                other_cpu=0.004,
                round_spread={row.id: row.spread for row in rows if row.rounds},
            ),
        ),
        "protocol": {"block_seconds": 1.0, "block_runs": 100, "rounds": 6, "seed": 0},
        "order": tuple(("a", "b") for _ in range(6)),
        "pairs": tuple(
            Pair(baseline.id, row.id)
            for baseline in rows
            for row in rows
            if baseline.runtime == "pytorch"
            and row.runtime != "pytorch"
            and row.comparison_key == baseline.comparison_key
        ),
    } | changes
    return BenchResult(rows=rows, **fields)


def board() -> BenchResult:
    """Return a result with three scopes and runtimes, a sustained run, a profile and paced rows."""
    rows = tuple(
        bench_row(runtime, variant, p50, scope)
        for scope in ("model", "image", "file")
        for runtime, variant, p50 in (
            ("pytorch", "fp32", 24.0),
            ("onnxruntime", "fp32", 9.1),
            ("onnxruntime", "int8", 4.4),
        )
    )
    rows += (
        bench_row("onnxruntime", "int8", 4.6, rate=50.0),
        bench_row("onnxruntime", "int8", 3.1, scope="file", rate=50.0),
    )
    operators = tuple(
        ProfiledOperator(name, "CPUExecutionProvider", nodes, us, us / 4400)
        for name, nodes, us in (
            ("QLinearConv", 52, 3400.0),
            ("Resize", 1, 420.0),
            ("Conv", 1, 300.0),
            ("Gemm", 1, 180.0),
            ("Softmax", 1, 100.0),
        )
    )
    profiles = {rows[2].id: OperatorProfile(50, operators, ())}
    return bench_result(
        rows,
        sustained=sustained_run(rows[2]),
        profiles=profiles,
        notes=("The page cache was warm.",),
    )


def server() -> BenchResult:
    """Return a noisy sweep on a device with few sensors; one variant failed its gate."""
    rows = tuple(
        bench_row(
            runtime,
            variant,
            p50 * batch**0.9 / threads**0.7,
            batch=batch,
            threads=threads,
            rounds=4,
            runs=60,
        )
        for batch in (1, 4, 16)
        for threads in (1, 2, 4)
        for runtime, variant, p50 in (
            ("pytorch", "fp32", 11.0),
            ("onnxruntime", "fp32", 3.0),
            ("onnxruntime", "int8", 1.5),
        )
    )
    failed_gate = replace(GATE, passed=False, reason="logits differ by 3.1, tolerance 0.05")
    rows += (replace(bench_row("onnxruntime", "fp16", 1.0), rounds=(), gate=failed_gate),)
    facts = device(
        "server",
        "A processor",
        machine="x86_64",
        cores=64,
        packages={"numpy": "2.1.0", "onnxruntime": "1.24.0", "torch": "2.14.0"},
    )
    noise = NoiseReport(
        ("other processes used 12% of the CPU",), Interference(other_cpu=0.12, disturbance=0.12)
    )
    return bench_result(
        rows,
        device=replace(facts, memory_bytes=None),
        noise=noise,
        interrupted=True,
        sustained=sustained_run(rows[1], sensors=False),
    )


def runtimes_result(speed: float = 1.0, **changes: Any) -> BenchResult:
    """Return a result of several runtimes, two numbers of threads and a refused runtime.

    Args:
        speed: speed of the device relative to a processor with VNNI and bfloat16.
        changes: replace other fields of the result.
    """
    fp32, bf16, int8 = accuracy(0.918), accuracy(0.918, 1), accuracy(0.909, 4)
    measurements = (
        ("onnxruntime", "fp32", 7.5, fp32),
        ("onnxruntime", "int8", 3.5, int8),
        ("openvino", "openvino-fp32", 7.4, fp32),
        ("openvino", "openvino-bf16", 4.2, bf16),
        ("openvino", "openvino-int8", 3.0, accuracy(0.914, 3)),
        ("ncnn", "ncnn-fp32", 8.0, fp32),
        ("ncnn", "ncnn-bf16", 6.8, bf16),
        ("litert", "litert-fp32", 9.9, fp32),
        ("litert", "litert-int8", 5.1, accuracy(0.895, 9)),
    )
    rows = [
        bench_row(
            runtime,
            variant,
            p50 / speed / threads**0.6,
            threads=threads,
            accuracy=top1,
            input="float32 1x3x224x224",
        )
        for threads in (1, 2)
        for runtime, variant, p50, top1 in measurements
    ]
    refused = replace(
        GATE, passed=False, reason="logits differ by 4.7, tolerance 0.9", top1_agreement=5
    )
    rows += [
        replace(
            rows[0],
            runtime="executorch",
            variant="executorch-int8",
            threads=threads,
            accuracy=accuracy(0.75, 38),
            gate=refused,
            rounds=(),
        )
        for threads in (1, 2)
    ]
    return bench_result(tuple(rows), **changes)
