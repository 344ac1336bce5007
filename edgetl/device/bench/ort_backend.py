"""ONNX Runtime as a benchmark backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgetl.core.errors import BenchError, EdgetlError, ProviderError
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.bench.backend import ModelSource, Stage
from edgetl.device.runtime.bundle import read_metadata
from edgetl.device.runtime.io_binding import (
    DEVICE_TYPES,
    DeviceRunner,
    IoBindingRunner,
    OrtCudaGraphRunner,
)
from edgetl.device.runtime.placement import (
    NodeAssignment,
    check_placement,
    provider_node_shares,
    read_node_assignments,
)
from edgetl.device.runtime.preprocessing import preprocess, resize_to
from edgetl.device.runtime.profile import profile_nodes, summarize_nodes
from edgetl.device.runtime.session import create_session, raise_provider_failure
from edgetl.device.runtime.session_modes import CUDA_GRAPH_MODE, DEFAULT_MODE, provider_options

_NUMPY_DTYPES = {
    "uint8": np.uint8, "int8": np.int8, "float": np.float32, "float16": np.float16, "double": np.float64,
    "int32": np.int32, "int64": np.int64, "bool": np.bool_,
}  # fmt: skip
_INTEGER_RANGES = {
    "uint8": (0, 255),
    "int8": (-128, 127),
    "int32": (0, 1),
    "int64": (0, 1),
    "bool": (0, 1),
}
"""Integers that are no pixels are lengths, masks or indices: 0 and 1 are valid for most models."""
DEFAULT_IMAGE_SIDE, DEFAULT_TENSOR_SIDE = 256, 224
"""Sizes given to a free dimension of a model that does not say what it wants."""


class OnnxRuntimeBackend:
    """An `edgetl.device.runtime.session` session with the calls that the benchmark times."""

    def __init__(self, source: ModelSource) -> None:
        self._source = source
        self.provider = source.provider
        self._session_mode = str(source.settings.get("session_mode", DEFAULT_MODE))
        self._provider_options = provider_options(source.provider, self._session_mode)
        try:
            self._session = create_session(
                source.model,
                source.provider,
                source.threads,
                precision=source.precision,
                provider_options=self._provider_options,
            )
        except EdgetlError as cause:
            if self._session_mode != CUDA_GRAPH_MODE or "graph capture" not in str(cause):
                raise
            raise BenchError(_capture_failed_message(source.model, str(cause))) from cause
        self._inputs = self._session.get_inputs()
        names = [node.name for node in self._session.get_outputs()]
        # A lone file that edgetl wrote says itself what it wants.
        stated = read_metadata(self._session.get_modelmeta().custom_metadata_map).get(
            "preprocessing"
        )
        self._preprocessing = source.preprocessing or (
            None if stated is None else Preprocessing.from_json(stated)
        )
        self._output_names = ["logits"] if "logits" in names else names
        # Bound once: the timed region holds one call.
        self._run, self._input_name = self._session.run, self._inputs[0].name
        memory = DEVICE_TYPES.get(source.provider)
        run = OrtCudaGraphRunner if self._session_mode == CUDA_GRAPH_MODE else IoBindingRunner
        self._device_run: DeviceRunner | None = (
            None if memory is None else run(self._session, self._output_names[0], memory)
        )

    def infer(self, batch: Any) -> NDArray[np.float32]:
        """Logits, or the first output of a model that is not edgetl's."""
        try:
            if self._device_run is not None:
                return self._device_run.download(self._device_run.compute(self._upload(batch)))
            logits: NDArray[np.float32] = self._run(
                self._output_names, batch if type(batch) is dict else {self._input_name: batch}
            )[0]
        except Exception as cause:  # onnxruntime's exceptions share no base class
            raise_provider_failure(self._session, cause)
            raise
        return logits

    def stages(self) -> list[Stage]:
        """One call; three where the device has memory of its own."""
        if self._device_run is None:
            return [("inference", self.infer)]
        return [
            ("to device", self._upload),
            ("inference", self._device_run.compute),
            ("to host", self._device_run.download),
        ]

    def _upload(self, batch: Any) -> Any:
        assert self._device_run is not None
        return self._device_run.upload(batch if type(batch) is dict else {self._input_name: batch})

    def preprocess_image(self, image: NDArray[np.uint8]) -> NDArray[Any]:
        """The image itself where preprocessing is in the graph, else the preprocessed tensor.

        For a variant of fixed size the image is resized to it first: its reference logits are those of such images.
        """
        if self._source.input == "image":
            return resize_to(image, self._source.size)[None]
        assert self._preprocessing is not None
        return preprocess(image, self._preprocessing)

    def make_inputs(self, count: int) -> list[Any]:
        """The given values, or random ones of the model's own types and shapes; a free batch is the one asked for."""
        found = (
            [self._load_input_file()]
            if self._source.given
            else [self._make_random_input(np.random.default_rng(number)) for number in range(count)]
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

    def _load_input_file(self) -> Any:
        path = self._source.given
        try:
            content = np.load(str(path), allow_pickle=False)
            arrays = (
                dict(content)
                if isinstance(content, np.lib.npyio.NpzFile)
                else {self._input_name: content}
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

    def _make_random_input(self, generator: np.random.Generator) -> Any:
        arrays = {node.name: self._make_random_array(node, generator) for node in self._inputs}
        return arrays if len(arrays) > 1 else arrays[self._input_name]

    def _make_random_array(self, node: Any, generator: np.random.Generator) -> NDArray[Any]:
        kind = node.type.removeprefix("tensor(").removesuffix(")")
        if kind not in _NUMPY_DTYPES:
            raise BenchError(
                f"{self._source.model} takes {node.type} as {node.name}; bench has random numbers only. Give it with --inputs."
            )
        contract = self._preprocessing
        side = DEFAULT_IMAGE_SIDE if kind == "uint8" else DEFAULT_TENSOR_SIDE
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
        if kind in _INTEGER_RANGES:
            return generator.integers(
                *_INTEGER_RANGES[kind], shape, np.int64, endpoint=True
            ).astype(_NUMPY_DTYPES[kind])
        return generator.random(shape, np.float32).astype(_NUMPY_DTYPES[kind])

    def autotune(self, batch: Any) -> dict[str, Any]:
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
            "io_binding": self._device_run is not None,
            **(
                {}
                if self._session_mode == DEFAULT_MODE
                else {
                    "session_mode": self._session_mode,
                    "provider_options": self._provider_options,
                }
            ),
            "node_share": self._compute_node_share(batch),
        }

    def _compute_node_share(self, batch: Any) -> dict[str, float]:
        assignments = (
            None if self._source.provider == "cpu" else read_node_assignments(self._session)
        )
        if assignments is None:
            profiled = self.profile(batch, 1)["nodes"]
            assignments = [
                NodeAssignment(node["node"], node["operator"], node["provider"])
                for node in profiled
            ]
            # Not judged yet where onnxruntime does not record its partitioning.
            check_placement(assignments, self._session.get_providers())
        return provider_node_shares(node.provider for node in assignments)

    def profile(self, batch: Any, runs: int) -> dict[str, Any]:
        """Time and share of every operator and node, with the provider it runs on; see `edgetl.device.runtime.profile.summary`.

        The runtime's profiler times the host. Where that only launches kernels, `clock` says so: the
        kernels' own times need a build with CUPTI (`--enable_cuda_profiling`), which PyPI's wheels aren't.
        """
        source = self._source

        def open_session(prefix: Path) -> onnxruntime.InferenceSession:
            # Node by node, so without a graph; and without IO binding a graph would replay addresses that are no longer its own.
            options = {} if self._session_mode == CUDA_GRAPH_MODE else self._provider_options
            return create_session(
                source.model,
                source.provider,
                source.threads,
                profile_prefix=prefix,
                precision=source.precision,
                provider_options=options,
            )

        feed = batch if isinstance(batch, dict) else {self._input_name: batch}
        clock = "host dispatch" if source.provider in DEVICE_TYPES else "host"
        return {
            "runs": runs,
            "clock": clock,
            **summarize_nodes(profile_nodes(open_session, feed, runs)),
        }


def _capture_failed_message(model: Path, words: str) -> str:
    """Say why a model has no CUDA graph, and what to do."""
    if "control flow" in words:
        reason = "it has control flow (If, Loop or Scan), which a CUDA graph can't hold"
    else:
        reason = "not all of its nodes run on the GPU"
    return (
        f"{model.name} has no CUDA graph: {reason}. "
        "Export with `--input tensor` or a fixed image size, or leave `cuda-graph` out of --session."
    )
