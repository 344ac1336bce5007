"""ONNX Runtime as a benchmark backend."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgetl.core.errors import BenchError
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.backends import Source
from edgetl.device.bundle import read_metadata
from edgetl.device.preprocessing import preprocess
from edgetl.device.session import create_session

_TYPES = {"uint8": np.uint8, "int8": np.int8, "float": np.float32, "float16": np.float16, "double": np.float64}
_RANGES = {"uint8": (0, 255), "int8": (-128, 127)}
IMAGE_SIDE, TENSOR_SIDE = 256, 224
"""Sizes given to a free dimension of a model that does not say what it wants."""


class OnnxRuntimeBackend:
    """An `edgetl.device.session` session with the calls that the benchmark times."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.provider = source.provider
        self._session = create_session(source.model, source.provider, source.threads)
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            listed = ", ".join(node.name for node in inputs)
            raise BenchError(f"{source.model} has {len(inputs)} inputs ({listed}); bench measures models with one.")
        self._input = inputs[0]
        names = [node.name for node in self._session.get_outputs()]
        # A lone file that edgetl wrote says itself what it wants.
        stated = read_metadata(self._session.get_modelmeta().custom_metadata_map).get("preprocessing")
        self._contract = source.preprocessing or (None if stated is None else Preprocessing.from_json(stated))
        self._outputs = ["logits"] if "logits" in names else names
        # Bound once: the timed region holds one call.
        self._run, self._name = self._session.run, self._input.name

    def infer(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Logits, or the first output of a model that is not edgetl's."""
        logits: NDArray[np.float32] = self._run(self._outputs, {self._name: batch})[0]
        return logits

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[Any]:
        """The image itself where preprocessing is in the graph, else the preprocessed tensor."""
        if self._source.input == "image":
            return image[None]
        assert self._contract is not None
        return preprocess(image, self._contract)

    def inputs(self, count: int) -> list[NDArray[Any]]:
        """Random values of the model's own type and shape; a free batch is 1."""
        kind = self._input.type.removeprefix("tensor(").removesuffix(")")
        if kind not in _TYPES:
            raise BenchError(f"{self._source.model} takes {self._input.type}; bench feeds images: uint8, int8 or floating point.")
        contract = self._contract
        side = IMAGE_SIDE if kind == "uint8" else TENSOR_SIDE
        if contract is not None:
            side = contract.resize if kind == "uint8" else contract.crop
        batch, *rest = self._input.shape or [1]
        colours = len(rest) == 3 and not isinstance(rest[-1], int) and kind == "uint8"
        shape = [batch if isinstance(batch, int) else 1, *(size if isinstance(size, int) else side for size in rest)]
        if colours:
            shape[-1] = 3
        generator = np.random.default_rng(0)
        if kind in _RANGES:
            return [generator.integers(*_RANGES[kind], shape, _TYPES[kind], endpoint=True) for _ in range(count)]
        return [generator.random(shape, np.float32).astype(_TYPES[kind]) for _ in range(count)]

    def settle(self, batch: NDArray[Any]) -> dict[str, Any]:
        """Nothing: the session options are onnxruntime's defaults."""
        return {}

    def describe(self, batch: NDArray[Any]) -> dict[str, Any]:
        """Session options as far as they shape the latency, and the share of nodes on each provider."""
        return {
            "onnxruntime": onnxruntime.__version__,
            "intra_op_threads": self._session.get_session_options().intra_op_num_threads,
            "inter_op_threads": self._session.get_session_options().inter_op_num_threads,
            "graph_optimization": str(self._session.get_session_options().graph_optimization_level).rpartition(".")[2],
            "providers": self._session.get_providers(),
            "node_share": provider_shares(self._source, self._name, batch),
        }


def provider_shares(source: Source, input_name: str, batch: NDArray[Any]) -> dict[str, float]:
    """Share of the executed nodes on each execution provider, counted in onnxruntime's own profile of one run."""
    with tempfile.TemporaryDirectory() as folder:
        session = create_session(source.model, source.provider, source.threads, profile_prefix=Path(folder, "profile"))
        session.run(None, {input_name: batch})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes = {
        event["name"]: event["args"]["provider"] for event in events if event.get("cat") == "Node" and event.get("args", {}).get("provider")
    }
    counted = Counter(nodes.values())
    return {provider: count / len(nodes) for provider, count in sorted(counted.items())}
