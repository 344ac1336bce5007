"""Conversion to OpenVINO's format: a graph (.xml) and its weights (.bin)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import onnx
import openvino

from edgetl.core.errors import ExportError
from edgetl.core.progress import LOGGER
from edgetl.device.hardware.cpu import available_cores
from edgetl.device.runtime.sessions.openvino_session import OpenVinoSession
from edgetl.device.runtime.sessions.session import SessionSource
from edgetl.export.formats.nncf_quantization import is_nncf_installed, quantize_with_nncf
from edgetl.export.formats.task import ConversionTask, ConvertedFile, OnnxNetwork
from edgetl.export.quantize.scoring import measure_drop

_RUNTIME = "openvino"
_CAPABILITIES = {"BF16": "bf16", "FP16": "fp16"}
"""OpenVINO's names of what the CPU computes natively, and precisions for float32 weights."""
_RUNS, _WARMUP_RUNS, _ROUNDS = 20, 5, 5


def convert_to_openvino(task: ConversionTask) -> list[ConvertedFile]:
    """Write the float32 network, its use in smaller float types, and int8 if wanted.

    Raises:
        ExportError: OpenVINO cannot read the network.
    """
    fp32_files = task.paths(_RUNTIME, "openvino-fp32")
    _write(task.float32.model, fp32_files)
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    # OpenVINO converts the weights when it loads the file.
    converted = [
        ConvertedFile(f"openvino-{precision}", fp32_files, precision)
        for precision in (
            "fp32",
            *(_CAPABILITIES[name] for name in capabilities if name in _CAPABILITIES),
        )
    ]
    if task.wants_int8:
        converted.append(_convert_int8(task))
    return converted


@dataclass(frozen=True)
class _Candidate:
    """An int8 network with its score on held-out training images."""

    method: str
    network: OnnxNetwork
    drop: float
    """Points of top-1 lost against float32."""
    ms: float


def _convert_int8(task: ConversionTask) -> ConvertedFile:
    """Write the better of the QDQ variant and NNCF's network.

    A candidate within the accuracy limit is preferred, then the faster one.
    """
    files = task.paths(_RUNTIME, "openvino-int8")
    candidates = list(_score_candidates(task, files))
    if not candidates:
        raise ExportError(
            "There is no int8 network for OpenVINO. Add int8 to {variants}, or install nncf."
        )
    best = min(candidates, key=lambda item: (item.drop > task.max_accuracy_drop, item.ms))
    _write(best.network.model, files)
    others = ", ".join(
        f"{item.method}: {item.drop:.1f} points lost, {item.ms:.2f} ms" for item in candidates
    )
    return ConvertedFile(
        "openvino-int8",
        files,
        "int8",
        f"{best.method} (on held-out training images {others})",
        best.network.confidence,
    )


def _score_candidates(task: ConversionTask, files: tuple[Path, ...]) -> Iterator[_Candidate]:
    networks: dict[str, OnnxNetwork] = {}
    if task.int8 is not None:
        networks["the QDQ file of the variant int8"] = task.int8
    if is_nncf_installed():
        task.notify("Quantizing with NNCF", 0, 0)
        networks["NNCF"] = task.assemble(
            quantize_with_nncf(task.float32.network, task.images.calibration)
        )
    elif networks:
        LOGGER.info("NNCF is not installed, so OpenVINO gets the network of the variant int8.")
    sessions = {}
    for method, network in networks.items():
        _write(network.model, files)
        sessions[method] = OpenVinoSession(
            SessionSource(files, available_cores(), task.crop, "int8")
        )
    drops = {method: _measure_drop(session, task) for method, session in sessions.items()}
    times = _measure_latencies(sessions, task)
    for method, network in networks.items():
        yield _Candidate(method, network, drops[method], times[method])


def _measure_drop(session: OpenVinoSession, task: ConversionTask) -> float:
    images = task.images.held_out
    logits = np.concatenate([session.run(["logits"], batch)[0] for batch in images.batches(1)])
    _, drop = measure_drop(logits, task.held_out_logits, images)
    return drop


def _measure_latencies(
    sessions: dict[str, OpenVinoSession], task: ConversionTask
) -> dict[str, float]:
    """Return the latency of one image in ms: the smallest of the medians of a few rounds.

    Sessions take turns, so that changes of the machine's speed affect all of them.
    """
    batch = next(task.images.held_out.batches(1))
    medians: dict[str, list[float]] = {method: [] for method in sessions}
    for _ in range(_ROUNDS):
        for method, session in sessions.items():
            times = []
            for _ in range(_WARMUP_RUNS + _RUNS):
                start = perf_counter()
                session.run(["logits"], batch)
                times.append(perf_counter() - start)
            medians[method].append(median(times[_WARMUP_RUNS:]))
    return {method: 1e3 * min(values) for method, values in medians.items()}


def _write(model: onnx.ModelProto, files: tuple[Path, ...]) -> None:
    try:
        network = openvino.Core().read_model(model.SerializeToString(deterministic=True))
        openvino.save_model(network, files[0], compress_to_fp16=False)
    except RuntimeError as cause:
        message = " ".join(str(cause).split())[:300]
        raise ExportError(
            f"OpenVINO {openvino.__version__} cannot read the network: {message} "
            "Leave out {formats} openvino."
        ) from cause
