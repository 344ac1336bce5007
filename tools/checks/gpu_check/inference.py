"""PyTorch against ONNX Runtime on the device, by edgetl's benchmark backends, in turns; then `edgetl bench` itself."""

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
class Contender:
    """One runtime in one mode, with what was measured of it."""

    name: str
    backend: Backend
    latencies_ms: list[float] = field(default_factory=list)

    def time(self, batch: NDArray[Any], seconds: float) -> None:
        """Measure `infer`, from numpy to numpy, for so long, after one call that is not counted."""
        self.backend.infer(batch)
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            started = time.perf_counter()
            self.backend.infer(batch)
            self.latencies_ms.append((time.perf_counter() - started) * 1e3)

    def percentile_ms(self, share: int) -> float:
        """Of all calls."""
        return float(np.percentile(self.latencies_ms, share))


def check_inference(settings: Settings, record: Record) -> None:
    """Step `inference`."""
    bundle = open_bundle(settings.tensor_run)
    preprocessing = bundle.preprocessing
    files = {name: bundle.variant_path(bundle.select_variant(name)) for name in ("fp32", "fp16")}
    batches = (2,) if settings.rehearsal else BATCHES
    for size in batches:
        contenders = _open_all(settings, record, files, preprocessing, size)
        _compare(settings, record, contenders, _tensors(preprocessing, size), size)
    if record.has_time(30, "edgetl bench"):
        with record.attempt("edgetl bench runs"):
            _run_bench(settings, record)
    # Last: what compiles may take its time.
    for size in batches:
        if not record.has_time(20, f"batch {size}, pytorch {COMPILED}"):
            break
        with record.attempt(f"batch {size}, pytorch {COMPILED} runs"):
            source = _torch_source(settings, preprocessing, size, COMPILED)
            compiled = _settled(f"pytorch {COMPILED}", PyTorchBackend, source, size, preprocessing)
            _compare(settings, record, [compiled], _tensors(preprocessing, size), size)


def _open_all(
    settings: Settings,
    record: Record,
    files: dict[str, Path],
    preprocessing: Preprocessing,
    size: int,
) -> list[Contender]:
    contenders = []
    modes = ("eager", "bf16") if settings.rehearsal else TORCH_MODES
    for mode in modes:
        name = f"pytorch {mode}"
        with record.attempt(f"batch {size}, {name} opens"):
            source = _torch_source(settings, preprocessing, size, mode)
            contenders.append(_settled(name, PyTorchBackend, source, size, preprocessing))
    sessions = ("default",) if settings.rehearsal else SESSIONS
    for variant, file in files.items():
        for session in sessions:
            name = f"onnxruntime {variant}, {session}"
            with record.attempt(f"batch {size}, {name} opens"):
                source = ModelSource(
                    file,
                    1,
                    settings.device,
                    "tensor",
                    preprocessing,
                    size,
                    settings={"session_mode": session},
                )
                contenders.append(_settled(name, OnnxRuntimeBackend, source, size, preprocessing))
    return contenders


def _torch_source(
    settings: Settings, preprocessing: Preprocessing, size: int, mode: str
) -> ModelSource:
    options = {"mode": mode}
    return ModelSource(
        settings.tensor_run, 1, settings.device, "tensor", preprocessing, size, settings=options
    )


def _settled(
    name: str,
    kind: Callable[[ModelSource], Backend],
    source: ModelSource,
    size: int,
    preprocessing: Preprocessing,
) -> Contender:
    backend = kind(source)
    backend.autotune(_tensors(preprocessing, size))
    return Contender(name, backend)


def _tensors(preprocessing: Preprocessing, size: int) -> NDArray[np.float32]:
    shape = (size, 3, preprocessing.crop, preprocessing.crop)
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _compare(
    settings: Settings, record: Record, contenders: list[Contender], batch: NDArray[Any], size: int
) -> None:
    alive = []
    for contender in contenders:
        with record.attempt(f"batch {size}, {contender.name} answers"):
            _check_answer(settings, record, contender, batch, size)
            alive.append(contender)
    for _ in range(1 if settings.rehearsal else TURNS):
        for contender in alive:
            with record.attempt(f"batch {size}, {contender.name} runs"):
                contender.time(batch, TURN_S)
    for contender in alive:
        calls = 3 if settings.rehearsal else 20
        call = _repeated(contender.backend, batch, calls)
        launches, device_ms = launches_and_device_ms(call, calls, settings.device)
        figures = {
            "p50_ms": contender.percentile_ms(50),
            "p99_ms": contender.percentile_ms(99),
            "calls": len(contender.latencies_ms),
            "device_ms": device_ms,
            "launches": launches,
        }
        record.measure(**{f"batch {size}, {contender.name}": figures})


def _check_answer(
    settings: Settings, record: Record, contender: Contender, batch: NDArray[Any], size: int
) -> None:
    # The reference of every answer is float32 on the CPU.
    bundle = open_bundle(settings.tensor_run)
    source = ModelSource(
        bundle.variant_path(bundle.select_variant("fp32")),
        4,
        "cpu",
        "tensor",
        bundle.preprocessing,
        size,
    )
    expected = OnnxRuntimeBackend(source).infer(batch)
    answer = contender.backend.infer(batch)
    # bf16 keeps fewer bits than TF32 and fp16; one logit decides nothing.
    share = 0.05 if "bf16" in contender.name else TF32_RELATIVE_TOLERANCE
    tolerance = max(0.05, share * float(np.abs(expected).max()))
    difference = float(np.abs(answer - expected).max())
    text = f"batch {size}, {contender.name}: logits are the CPU's"
    record.require(text, difference <= tolerance, f"{difference:.3g}, tolerance {tolerance:.3g}")


def _repeated(backend: Backend, batch: NDArray[Any], calls: int) -> Callable[[], None]:
    def call() -> None:
        for _ in range(calls):
            backend.infer(batch)

    return call


def _run_bench(settings: Settings, record: Record) -> None:
    command = [sys.executable, "-m", "edgetl", "bench", str(settings.tensor_run), "--json"]
    options = [
        "--scope",
        "model",
        "--provider",
        settings.device,
        "--variant",
        "fp32",
        "--rounds",
        "2",
    ]
    if settings.device == "cuda":
        options += ["--session", "default,cuda-graph"]
    done = subprocess.run([*command, *options], stdout=subprocess.PIPE, text=True)
    record.require("edgetl bench ends well", done.returncode == 0, done.returncode)
    if done.returncode:
        return
    result = json.loads(done.stdout)
    failed = [row["id"] for row in result["rows"] if not row.get("rounds")]
    record.require("edgetl bench measures every row", not failed, ", ".join(failed))
    rows = {row["id"]: {name: row[name] for name in ("p50_ms", "p99_ms")} for row in result["rows"]}
    record.measure(**{"edgetl bench, 2 rounds": rows})
