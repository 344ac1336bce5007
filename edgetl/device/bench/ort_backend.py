"""ONNX Runtime as a benchmark backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgetl.core.errors import BenchError, EdgetlError, ProviderError
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.bench.backend import Source, Stage
from edgetl.device.runtime.bundle import read_metadata
from edgetl.device.runtime.io_binding import MEMORY, BoundRun, DeviceRun, GraphRun
from edgetl.device.runtime.placement import (
    NodeAssignment,
    check_placement,
    node_share,
    recorded_assignments,
)
from edgetl.device.runtime.preprocessing import preprocess, resize_to
from edgetl.device.runtime.profile import node_times, summary
from edgetl.device.runtime.session import create_session, refuse_failed_run
from edgetl.device.runtime.session_modes import CUDA_GRAPH, DEFAULT, provider_options

_TYPES = {
    "uint8": np.uint8, "int8": np.int8, "float": np.float32, "float16": np.float16, "double": np.float64,
    "int32": np.int32, "int64": np.int64, "bool": np.bool_,
}  # fmt: skip
_RANGES = {"uint8": (0, 255), "int8": (-128, 127), "int32": (0, 1), "int64": (0, 1), "bool": (0, 1)}
"""Integers that are no pixels are lengths, masks or indices: 0 and 1 are valid for most models."""
IMAGE_SIDE, TENSOR_SIDE = 256, 224
"""Sizes given to a free dimension of a model that does not say what it wants."""


class OnnxRuntimeBackend:
    """An `edgetl.device.runtime.session` session with the calls that the benchmark times."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.provider = source.provider
        self._mode = str(source.settings.get("session_mode", DEFAULT))
        self._options = provider_options(source.provider, self._mode)
        try:
            self._session = create_session(
                source.model,
                source.provider,
                source.threads,
                precision=source.precision,
                provider_options=self._options,
            )
        except EdgetlError as cause:
            if self._mode != CUDA_GRAPH or "graph capture" not in str(cause):
                raise
            raise BenchError(_not_captured(source.model, str(cause))) from cause
        self._inputs = self._session.get_inputs()
        names = [node.name for node in self._session.get_outputs()]
        # A lone file that edgetl wrote says itself what it wants.
        stated = read_metadata(self._session.get_modelmeta().custom_metadata_map).get(
            "preprocessing"
        )
        self._contract = source.preprocessing or (
            None if stated is None else Preprocessing.from_json(stated)
        )
        self._outputs = ["logits"] if "logits" in names else names
        # Bound once: the timed region holds one call.
        self._run, self._name = self._session.run, self._inputs[0].name
        memory = MEMORY.get(source.provider)
        run = GraphRun if self._mode == CUDA_GRAPH else BoundRun
        self._bound: DeviceRun | None = (
            None if memory is None else run(self._session, self._outputs[0], memory)
        )

    def infer(self, batch: Any) -> NDArray[np.float32]:
        """Logits, or the first output of a model that is not edgetl's."""
        try:
            if self._bound is not None:
                return self._bound.download(self._bound.compute(self._upload(batch)))
            logits: NDArray[np.float32] = self._run(
                self._outputs, batch if type(batch) is dict else {self._name: batch}
            )[0]
        except Exception as cause:  # onnxruntime's exceptions share no base class
            refuse_failed_run(self._session, cause)
            raise
        return logits

    def stages(self) -> list[Stage]:
        """One call; three where the device has memory of its own."""
        if self._bound is None:
            return [("inference", self.infer)]
        return [
            ("to device", self._upload),
            ("inference", self._bound.compute),
            ("to host", self._bound.download),
        ]

    def _upload(self, batch: Any) -> Any:
        assert self._bound is not None
        return self._bound.upload(batch if type(batch) is dict else {self._name: batch})

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[Any]:
        """The image itself where preprocessing is in the graph, else the preprocessed tensor.

        For a variant of fixed size the image is resized to it first: its reference logits are those of such images.
        """
        if self._source.input == "image":
            return resize_to(image, self._source.size)[None]
        assert self._contract is not None
        return preprocess(image, self._contract)

    def inputs(self, count: int) -> list[Any]:
        """The given values, or random ones of the model's own types and shapes; a free batch is the one asked for."""
        found = (
            [self._given()]
            if self._source.given
            else [self._random(np.random.default_rng(number)) for number in range(count)]
        )
        try:
            self.infer(found[0])
        except ProviderError:
            raise
        except Exception as cause:  # onnxruntime's exceptions share no base class
            wanted = "; ".join(f"{node.name}: {node.type} {node.shape}" for node in self._inputs)
            kind = "given" if self._source.given else "random"
            raise BenchError(
                f"{self._source.model} does not take the {kind} input: {str(cause).splitlines()[0]} It wants {wanted}. "
                "Give what it takes with --inputs FILE.npy, or FILE.npz with one array for each input."
            ) from cause
        return found

    def _given(self) -> Any:
        path = self._source.given
        try:
            content = np.load(str(path), allow_pickle=False)
            arrays = (
                dict(content)
                if isinstance(content, np.lib.npyio.NpzFile)
                else {self._name: content}
            )
        except (OSError, ValueError, EOFError) as cause:
            raise BenchError(
                f"{path} is no .npy or .npz file of plain numbers ({cause}). Write it with numpy.save or numpy.savez."
            ) from cause
        lacking = [node.name for node in self._inputs if node.name not in arrays]
        if lacking:
            raise BenchError(
                f"{path} has no array for {', '.join(lacking)}. Name the arrays of an .npz file as the model names its inputs."
            )
        return {node.name: arrays[node.name] for node in self._inputs}

    def _random(self, generator: np.random.Generator) -> Any:
        arrays = {node.name: self._random_array(node, generator) for node in self._inputs}
        return arrays if len(arrays) > 1 else arrays[self._name]

    def _random_array(self, node: Any, generator: np.random.Generator) -> NDArray[Any]:
        kind = node.type.removeprefix("tensor(").removesuffix(")")
        if kind not in _TYPES:
            raise BenchError(
                f"{self._source.model} takes {node.type} as {node.name}; bench has random numbers only. Give it with --inputs."
            )
        contract = self._contract
        side = IMAGE_SIDE if kind == "uint8" else TENSOR_SIDE
        if contract is not None:
            side = contract.resize if kind == "uint8" else contract.crop
        batch, *rest = node.shape or [1]
        if isinstance(batch, int) and self._source.batch not in (batch, 1):
            raise BenchError(
                f"{self._source.model} takes batches of {batch} only, not of {self._source.batch}. Leave --batch out."
            )
        colours = len(rest) == 3 and not isinstance(rest[-1], int) and kind == "uint8"
        shape = [
            batch if isinstance(batch, int) else self._source.batch,
            *(size if isinstance(size, int) else side for size in rest),
        ]
        if colours:
            shape[-1] = 3
        if kind in _RANGES:
            return generator.integers(*_RANGES[kind], shape, np.int64, endpoint=True).astype(
                _TYPES[kind]
            )
        return generator.random(shape, np.float32).astype(_TYPES[kind])

    def settle(self, batch: Any) -> dict[str, Any]:
        """Nothing: the session options are onnxruntime's defaults."""
        return {}

    def describe(self, batch: Any) -> dict[str, Any]:
        """Session options as far as they shape the latency, and the share of nodes on each provider."""
        options = self._session.get_session_options()
        return {
            "onnxruntime": onnxruntime.__version__,
            "intra_op_threads": options.intra_op_num_threads,
            "inter_op_threads": options.inter_op_num_threads,
            "graph_optimization": str(options.graph_optimization_level).rpartition(".")[2],
            "providers": self._session.get_providers(),
            "io_binding": self._bound is not None,
            **(
                {}
                if self._mode == DEFAULT
                else {"session_mode": self._mode, "provider_options": self._options}
            ),
            "node_share": self._node_share(batch),
        }

    def _node_share(self, batch: Any) -> dict[str, float]:
        assignments = (
            None if self._source.provider == "cpu" else recorded_assignments(self._session)
        )
        if assignments is None:
            profiled = self.profile(batch, 1)["nodes"]
            assignments = [
                NodeAssignment(node["node"], node["operator"], node["provider"])
                for node in profiled
            ]
            # Not judged yet where onnxruntime does not record its partitioning.
            check_placement(assignments, self._session.get_providers())
        return node_share(node.provider for node in assignments)

    def profile(self, batch: Any, runs: int) -> dict[str, Any]:
        """Time and share of every operator and node, with the provider it runs on; see `edgetl.device.runtime.profile.summary`.

        The runtime's profiler times the host. Where that only launches kernels, `clock` says so: the
        kernels' own times need a build with CUPTI (`--enable_cuda_profiling`), which PyPI's wheels aren't.
        """
        source = self._source

        def open_session(prefix: Path) -> onnxruntime.InferenceSession:
            # Node by node, so without a graph; and without IO binding a graph would replay addresses that are no longer its own.
            options = {} if self._mode == CUDA_GRAPH else self._options
            return create_session(
                source.model,
                source.provider,
                source.threads,
                profile_prefix=prefix,
                precision=source.precision,
                provider_options=options,
            )

        feed = batch if isinstance(batch, dict) else {self._name: batch}
        clock = "host dispatch" if source.provider in MEMORY else "host"
        return {"runs": runs, "clock": clock, **summary(node_times(open_session, feed, runs))}


def _not_captured(model: Path, words: str) -> str:
    """Say why a model has no CUDA graph, and what to do."""
    if "control flow" in words:
        reason = "it has control flow (If, Loop or Scan), which a CUDA graph can't hold"
    else:
        reason = "not all of its nodes run on the GPU"
    return (
        f"{model.name} has no CUDA graph: {reason}. "
        "Export with `--input tensor` or a fixed image size, or leave `cuda-graph` out of --session."
    )
