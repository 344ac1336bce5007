"""PyTorch and ONNX Runtime latency with edgetl's benchmark backends, then `edgetl bench` itself."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.core.preprocessing import Preprocessing
from edgetl.device.bench.backend import Backend, ModelSource
from edgetl.device.bench.ort_backend import OnnxRuntimeBackend
from edgetl.device.runtime.bundle import open_bundle
from edgetl.device.runtime.golden import TF32_RELATIVE_TOLERANCE
from edgetl.train.pytorch_backend import PyTorchBackend
from tools.checks.gpu_check.profile import launches_and_device_ms
from tools.checks.gpu_check.record import Record
from tools.checks.gpu_check.settings import Settings

BATCHES = (1, 8, 64)
TURNS = 4
TURN_S = 0.1
COMPILED = "compile"
TORCH_MODES = ("eager", "fp16", "cuda-graph", "fp16-cuda-graph")
SESSIONS = ("default", "cuda-graph")


@dataclass
class TimedBackend:
    """One runtime in one mode with its measured latencies."""

    name: str
    backend: Backend
    latencies_ms: list[float] = field(default_factory=list)

    def time(self, batch: NDArray[Any], seconds: float) -> None:
        """Time `infer`, NumPy to NumPy, for `seconds` after one untimed call."""
        self.backend.infer(batch)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            started = time.perf_counter()
            self.backend.infer(batch)
            self.latencies_ms.append((time.perf_counter() - started) * 1e3)

    def percentile_ms(self, percent: int) -> float:
        """Return a percentile of the measured latencies."""
        return float(np.percentile(self.latencies_ms, percent))


def check_inference(settings: Settings, record: Record) -> None:
    """Run step `inference`: compare runtimes at several batch sizes, then run `edgetl bench`."""
    bundle = open_bundle(settings.tensor_run)
    preprocessing = bundle.preprocessing
    files = {name: bundle.variant_path(bundle.select_variant(name)) for name in ("fp32", "fp16")}
    batches = (2,) if settings.rehearsal else BATCHES
    for size in batches:
        cases = _open_cases(settings, record, files, preprocessing, size)
        _compare(settings, record, cases, _tensors(preprocessing, size), size)
    if record.has_time(30, "edgetl bench"):
        with record.attempt("edgetl bench runs"):
            _run_bench(settings, record)
    # torch.compile comes last, because compiling may take long.
    for size in batches:
        if not record.has_time(20, f"batch {size}, pytorch {COMPILED}"):
            break
        with record.attempt(f"batch {size}, pytorch {COMPILED} runs"):
            source = _torch_source(settings, preprocessing, size, COMPILED)
            compiled = _open_case(
                f"pytorch {COMPILED}", PyTorchBackend, source, size, preprocessing
            )
            _compare(settings, record, [compiled], _tensors(preprocessing, size), size)


def _open_cases(
    settings: Settings,
    record: Record,
    files: dict[str, Path],
    preprocessing: Preprocessing,
    size: int,
) -> list[TimedBackend]:
    cases = []
    modes = ("eager", "bf16") if settings.rehearsal else TORCH_MODES
    for mode in modes:
        name = f"pytorch {mode}"
        with record.attempt(f"batch {size}, {name} opens"):
            source = _torch_source(settings, preprocessing, size, mode)
            cases.append(_open_case(name, PyTorchBackend, source, size, preprocessing))
    sessions = ("default",) if settings.rehearsal else SESSIONS
    for variant, file in files.items():
        for session in sessions:
            name = f"onnxruntime {variant}, {session}"
            with record.attempt(f"batch {size}, {name} opens"):
                options = {"session_mode": session}
                source = ModelSource(
                    file, 1, settings.device, "tensor", preprocessing, size, settings=options
                )
                cases.append(_open_case(name, OnnxRuntimeBackend, source, size, preprocessing))
    return cases


def _torch_source(
    settings: Settings, preprocessing: Preprocessing, size: int, mode: str
) -> ModelSource:
    options = {"mode": mode}
    return ModelSource(
        settings.tensor_run, 1, settings.device, "tensor", preprocessing, size, settings=options
    )


def _open_case(
    name: str,
    backend_type: Callable[[ModelSource], Backend],
    source: ModelSource,
    size: int,
    preprocessing: Preprocessing,
) -> TimedBackend:
    backend = backend_type(source)
    backend.autotune(_tensors(preprocessing, size))
    return TimedBackend(name, backend)


def _tensors(preprocessing: Preprocessing, size: int) -> NDArray[np.float32]:
    shape = (size, 3, preprocessing.crop, preprocessing.crop)
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _compare(
    settings: Settings, record: Record, cases: list[TimedBackend], batch: NDArray[Any], size: int
) -> None:
    runnable = []
    for case in cases:
        with record.attempt(f"batch {size}, {case.name} returns logits"):
            _check_logits(settings, record, case, batch, size)
            runnable.append(case)
    for _ in range(1 if settings.rehearsal else TURNS):
        for case in runnable:
            with record.attempt(f"batch {size}, {case.name} runs"):
                case.time(batch, TURN_S)
    for case in runnable:
        calls = 3 if settings.rehearsal else 20
        call = _repeat_infer(case.backend, batch, calls)
        launches, device_ms = launches_and_device_ms(call, calls, settings.device)
        figures = {
            "p50_ms": case.percentile_ms(50),
            "p99_ms": case.percentile_ms(99),
            "calls": len(case.latencies_ms),
            "device_ms": device_ms,
            "launches": launches,
        }
        record.measure(**{f"batch {size}, {case.name}": figures})


def _check_logits(
    settings: Settings, record: Record, case: TimedBackend, batch: NDArray[Any], size: int
) -> None:
    # The reference is always float32 on the CPU.
    bundle = open_bundle(settings.tensor_run)
    file = bundle.variant_path(bundle.select_variant("fp32"))
    source = ModelSource(file, 4, "cpu", "tensor", bundle.preprocessing, size)
    expected = OnnxRuntimeBackend(source).infer(batch)
    logits = case.backend.infer(batch)
    # bf16 has fewer mantissa bits than TF32 and fp16.
    relative_tolerance = 0.05 if "bf16" in case.name else TF32_RELATIVE_TOLERANCE
    tolerance = max(0.05, relative_tolerance * float(np.abs(expected).max()))
    difference = float(np.abs(logits - expected).max())
    text = f"batch {size}, {case.name}: logits match the CPU"
    record.require(text, difference <= tolerance, f"{difference:.3g}, tolerance {tolerance:.3g}")


def _repeat_infer(backend: Backend, batch: NDArray[Any], calls: int) -> Callable[[], None]:
    def call() -> None:
        for _ in range(calls):
            backend.infer(batch)

    return call


def _run_bench(settings: Settings, record: Record) -> None:
    command = [sys.executable, "-m", "edgetl", "bench", str(settings.tensor_run), "--json"]
    options = ["--scope", "model", "--provider", settings.device]
    options += ["--variant", "fp32", "--rounds", "2"]
    if settings.device == "cuda":
        options += ["--session", "default,cuda-graph"]
    process = subprocess.run([*command, *options], stdout=subprocess.PIPE, text=True)
    record.require("edgetl bench succeeds", process.returncode == 0, process.returncode)
    if process.returncode:
        return
    result = json.loads(process.stdout)
    failed = [row["id"] for row in result["rows"] if not row.get("rounds")]
    record.require("edgetl bench measures every row", not failed, ", ".join(failed))
    rows = {row["id"]: {name: row[name] for name in ("p50_ms", "p99_ms")} for row in result["rows"]}
    record.measure(**{"edgetl bench, 2 rounds": rows})
