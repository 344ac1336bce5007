"""Session of OpenVINO, which reads its own format and ONNX files.

Sources: OpenVINO's documentation, "CPU Device" (precision and threads) and the Python API reference
of `openvino.CompiledModel`.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from edgetl.core.artifacts.session import ProfiledNode
from edgetl.device.runtime.sessions.session import SessionFacts, SessionSource, load_error

_PIXELS = "pixels"
"""Name of the network's input, in the ONNX files and in the converted ones."""
_PRECISION_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
"""`INFERENCE_PRECISION_HINT` by precision. int8 layers are in the file; the rest is float32."""
_PRECISION_NAMES = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "u8": "int8", "i8": "int8"}
_COMPUTE_LAYERS = ("Convolution", "FullyConnected", "MatMul", "Deconvolution")


class _BoundRequest:
    """A request for one batch size, with memory for its outputs.

    `InferRequest.infer` takes 0.3 ms around an inference of 3 ms, because it wraps every input and
    output. These calls take 0.07 ms.
    """

    def __init__(self, compiled: openvino.CompiledModel) -> None:
        self.compiled = compiled
        self._request = compiled.create_infer_request()
        self._outputs: dict[str, NDArray[Any]] = {}
        for index, output in enumerate(compiled.outputs):
            memory = np.empty(tuple(output.shape), output.element_type.to_dtype())
            self._request.set_output_tensor(index, openvino.Tensor(memory, shared_memory=True))
            self._outputs[output.get_any_name()] = memory

    def run(self, names: Sequence[str], batch: NDArray[Any]) -> list[NDArray[Any]]:
        """Return copies of the outputs."""
        # The tensor is a view of the batch, which lives until the inference ends.
        tensor = openvino.Tensor(np.ascontiguousarray(batch), shared_memory=True)
        self._request.set_input_tensor(0, tensor)
        self._request.start_async()
        self._request.wait()
        return [self._outputs[name].copy() for name in names]


class OpenVinoSession:
    """A model compiled for the CPU, once for each batch size."""

    def __init__(self, source: SessionSource) -> None:
        self._source = source
        # A request can run only one inference at a time.
        self._lock = threading.Lock()
        self._core = openvino.Core()
        try:
            self._model = _read_network(self._core, source)
            self.output_names = tuple(output.get_any_name() for output in self._model.outputs)
            self._requests: dict[int, _BoundRequest] = {}
            self._request_for(1)
        except Exception as cause:  # OpenVINO raises RuntimeError for everything
            raise load_error("openvino", openvino.__version__, source.files, cause) from cause

    def run(self, names: Sequence[str], batch: NDArray[Any]) -> list[NDArray[Any]]:
        """Return copies of the outputs `names` for float32 [batch, 3, crop, crop]."""
        with self._lock:
            request = self._requests.get(len(batch)) or self._request_for(len(batch))
            return request.run(names, batch)

    def describe(self) -> SessionFacts:
        """Return what OpenVINO compiled: precision by layer from its executable graph."""
        compiled = self._requests[min(self._requests)].compiled
        return SessionFacts(
            version=openvino.__version__.split("-")[0],
            threads=int(compiled.get_property("INFERENCE_NUM_THREADS")),
            precision_shares=_precision_shares(compiled.get_runtime_model()),
            options={
                "INFERENCE_PRECISION_HINT": str(
                    compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
                ),
                "NUM_STREAMS": str(compiled.get_property("NUM_STREAMS")),
                "PERFORMANCE_HINT": "LATENCY",
            },
        )

    def profile(self, pixels: NDArray[np.float32], runs: int) -> list[ProfiledNode]:
        """Return the median time of each layer, from a model compiled with profiling."""
        request = self._compile(len(pixels), profiling=True).create_infer_request()
        times: dict[tuple[str, str], list[float]] = {}
        for _ in range(runs):
            request.infer([pixels], share_inputs=True)
            for layer in request.get_profiling_info():
                if layer.status == openvino.ProfilingInfo.Status.EXECUTED:
                    key = (layer.node_name, layer.node_type)
                    times.setdefault(key, []).append(layer.real_time.total_seconds() * 1e6)
        medians = {key: float(np.median(values)) for key, values in times.items()}
        total = sum(medians.values()) or 1.0
        return [
            ProfiledNode(name, operator, "CPU", us, us / total)
            for (name, operator), us in sorted(medians.items(), key=lambda item: -item[1])
        ]

    def _request_for(self, batch: int) -> _BoundRequest:
        request = _BoundRequest(self._compile(batch))
        self._requests[batch] = request
        return request

    def _compile(self, batch: int, profiling: bool = False) -> openvino.CompiledModel:
        # Static shapes: a dynamic batch takes the choice of kernels from OpenVINO.
        model = self._model.clone()
        side = self._source.crop
        model.reshape([batch, 3, side, side])
        options = {
            "INFERENCE_PRECISION_HINT": _PRECISION_HINTS.get(self._source.precision, "f32"),
            "INFERENCE_NUM_THREADS": self._source.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "PERF_COUNT": profiling,
        }
        return self._core.compile_model(model, "CPU", options)


def _read_network(core: openvino.Core, source: SessionSource) -> openvino.Model:
    """Read a model whose input is the network's.

    OpenVINO computes the antialiased Resize of an ONNX file without antialiasing (2026.4), so the
    preprocessing is cut off, and edgetl's takes its place.
    """
    model = core.read_model(source.files[0])
    if any(_PIXELS in value.get_names() for value in model.inputs):
        return model
    for node in model.get_ordered_ops():
        for output in node.outputs():
            if _PIXELS in output.get_names():
                side = source.crop
                pixels = openvino.opset13.parameter([-1, 3, side, side], np.float32, name=_PIXELS)
                for target in list(output.get_target_inputs()):
                    target.replace_source_output(pixels.output(0))
                return openvino.Model(model.get_results(), [pixels], "network")
    raise RuntimeError(f"it has no value {_PIXELS}")


def _precision_shares(graph: openvino.Model) -> dict[str, float]:
    """Return the share of compute layers by precision, from an executable graph."""
    counts: Counter[str] = Counter()
    for node in graph.get_ordered_ops():
        info = node.get_rt_info()
        if info["layerType"].astype(str) in _COMPUTE_LAYERS:
            precision = info["runtimePrecision"].astype(str)
            counts[_PRECISION_NAMES.get(precision, precision)] += 1
    total = sum(counts.values())
    return {name: count / total for name, count in counts.most_common()}
