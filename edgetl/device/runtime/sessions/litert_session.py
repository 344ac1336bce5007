"""Session of LiteRT (TensorFlow Lite), whose XNNPACK delegate computes on the CPU.

Sources: LiteRT's guide, "Inference on CPU with XNNPACK"; the Python API reference of
`ai_edge_litert.interpreter.Interpreter`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from edgetl.core.artifacts.session import ProfiledNode
from edgetl.device.runtime.preprocessing import to_channels_last
from edgetl.device.runtime.sessions.session import SessionFacts, SessionSource, load_error

_PACKAGE = "ai-edge-litert"
_DELEGATE = "DELEGATE"
_COMPUTE_OPERATORS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL")
_PRECISION_NAMES = {np.dtype(np.float32): "fp32", np.dtype(np.int8): "int8"}


@dataclass(frozen=True)
class _Request:
    """An interpreter for one batch size."""

    interpreter: Interpreter
    pixels: int
    outputs: Mapping[str, int]


class LiteRtSession:
    """A model for LiteRT's interpreter, with memory for each batch size."""

    def __init__(self, source: SessionSource) -> None:
        self._source = source
        # The memory of an interpreter holds one batch.
        self._lock = threading.Lock()
        self._requests: dict[int, _Request] = {}
        try:
            self.output_names = tuple(self._request_for(1).outputs)
        except Exception as cause:  # LiteRT raises ValueError and RuntimeError for everything
            raise load_error("litert", version(_PACKAGE), source.files, cause) from cause

    def run(self, names: Sequence[str], batch: NDArray[Any]) -> list[NDArray[Any]]:
        """Return copies of the outputs `names` for float32 [batch, 3, crop, crop]."""
        with self._lock:
            request = self._requests.get(len(batch)) or self._request_for(len(batch))
            pixels = to_channels_last(batch).transpose(0, 2, 3, 1)
            request.interpreter.set_tensor(request.pixels, pixels)
            request.interpreter.invoke()
            return [request.interpreter.get_tensor(request.outputs[name]) for name in names]

    def describe(self) -> SessionFacts:
        """Return precisions by the types of the layers' tensors, and the share on XNNPACK.

        LiteRT does not report the number of threads; it is what the session asked for.
        """
        interpreter = self._requests[min(self._requests)].interpreter
        operators = interpreter._get_ops_details()
        types = {
            entry["index"]: np.dtype(entry["dtype"]) for entry in interpreter.get_tensor_details()
        }
        layers = [entry for entry in operators if entry["op_name"] in _COMPUTE_OPERATORS]
        counts: dict[str, int] = {}
        for layer in layers:
            dtype = types[layer["inputs"][0]]
            name = _PRECISION_NAMES.get(dtype, dtype.name)
            counts[name] = counts.get(name, 0) + 1
        outputs = [entry["index"] for entry in interpreter.get_output_details()]
        others = _operators_outside_delegates(operators, outputs)
        total = sum(entry["op_name"] != _DELEGATE for entry in operators)
        return SessionFacts(
            version=version(_PACKAGE),
            threads=self._source.threads,
            precision_shares={name: count / len(layers) for name, count in counts.items()},
            options={"XNNPACK": f"{total - len(others)} of {total} operators"},
        )

    def profile(self, pixels: NDArray[np.float32], runs: int) -> list[ProfiledNode]:
        """Return no times: XNNPACK runs the whole graph as one operator."""
        return []

    def _request_for(self, batch: int) -> _Request:
        # Without delegates of its own choice, LiteRT uses XNNPACK.
        interpreter = Interpreter(str(self._source.files[0]), num_threads=self._source.threads)
        [pixels] = interpreter.get_input_details()
        if pixels["shape"][0] != batch:
            interpreter.resize_tensor_input(pixels["index"], [batch, *pixels["shape"][1:]])
        interpreter.allocate_tensors()
        [signature] = interpreter.get_signature_list()
        details = interpreter.get_signature_runner(signature).get_output_details()
        outputs = {name: int(entry["index"]) for name, entry in details.items()}
        request = _Request(interpreter, int(pixels["index"]), outputs)
        self._requests[batch] = request
        return request


def _operators_outside_delegates(
    operators: Sequence[Mapping[str, Any]], outputs: Sequence[int]
) -> set[int]:
    """Return the indices of operators that no delegate computes.

    LiteRT lists operators also where a delegate replaces them. The graph is followed from the
    outputs to the inputs, through the delegate where it computes a value.
    """
    producers: dict[int, Mapping[str, Any]] = {}
    for entry in operators:
        for tensor in entry["outputs"]:
            if entry["op_name"] == _DELEGATE or int(tensor) not in producers:
                producers[int(tensor)] = entry
    executed: dict[int, str] = {}
    tensors = list(outputs)
    while tensors:
        producer = producers.get(int(tensors.pop()))
        if producer is not None and producer["index"] not in executed:
            executed[producer["index"]] = producer["op_name"]
            tensors += [tensor for tensor in producer["inputs"] if tensor >= 0]
    return {index for index, name in executed.items() if name != _DELEGATE}
