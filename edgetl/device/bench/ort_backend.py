"""Benchmark backend of ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgetl.core.artifacts.session import OperatorProfile, SessionRecord
from edgetl.core.cache import get_cache_folder
from edgetl.core.config.session_modes import CUDA_GRAPH_MODE, DEFAULT_MODE, mode_options
from edgetl.core.errors import BenchError, EdgetlError, ProviderError
from edgetl.device.bench.backend import ModelSource, Stage
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
from edgetl.device.runtime.profile import profile_nodes, summarize_operators
from edgetl.device.runtime.session import create_session, raise_provider_failure, read_metadata

_NUMPY_DTYPES = {
    "uint8": np.uint8, "int8": np.int8, "int32": np.int32, "int64": np.int64, "bool": np.bool_,
    "float16": np.float16, "float": np.float32, "double": np.float64,
}  # fmt: skip
_INTEGER_RANGES = {
    "uint8": (0, 255),
    "int8": (-128, 127),
    "int32": (0, 1),
    "int64": (0, 1),
    "bool": (0, 1),
}
"""Ranges of random integers. Other integers than pixels are lengths, masks or indices.

0 and 1 are valid for most models.
"""
DEFAULT_IMAGE_SIDE, DEFAULT_TENSOR_SIDE = 256, 224
"""Sizes of a dynamic dimension of models without preprocessing metadata."""


class OnnxRuntimeBackend:
    """An ONNX Runtime session with the calls that the benchmark times."""

    def __init__(self, source: ModelSource) -> None:
        self._source = source
        self.provider = source.provider
        self._session_mode = source.settings.get("session_mode", DEFAULT_MODE)
        self._mode_options = mode_options(source.provider, self._session_mode)
        try:
            self._session = create_session(
                source.model,
                source.provider,
                source.threads,
                precision=source.precision,
                session_mode=self._session_mode,
            )
        except EdgetlError as cause:
            if self._session_mode != CUDA_GRAPH_MODE or "graph capture" not in str(cause):
                raise
            raise BenchError(_capture_failed_message(source.model, str(cause))) from cause
        self._check_session_options(source.model)
        self._inputs = self._session.get_inputs()
        names = [node.name for node in self._session.get_outputs()]
        # Files written by edgetl have their preprocessing in the metadata.
        metadata = read_metadata(self._session)
        self._preprocessing = source.preprocessing
        if self._preprocessing is None and metadata is not None:
            self._preprocessing = metadata.preprocessing
        self._output_names = ["logits"] if "logits" in names else names
        self._has_unknown_score = "unknown_score" in names
        # Outside its bound buffers a CUDA graph would replay stale addresses.
        self._has_confidence = "probabilities" in names and self._session_mode != CUDA_GRAPH_MODE
        # Bound once, so that the timed region holds a single call.
        self._run = self._session.run
        self._input_name = self._inputs[0].name
        self._device_run: DeviceRunner | None = None
        device_type = DEVICE_TYPES.get(source.provider)
        if device_type is not None:
            is_graph = self._session_mode == CUDA_GRAPH_MODE
            runner_class = OrtCudaGraphRunner if is_graph else IoBindingRunner
            self._device_run = runner_class(self._session, self._output_names[0], device_type)

    def _check_session_options(self, model: Path) -> None:
        """Check that the session has the options of its mode.

        Raises:
            BenchError: the optimized model could not be cached.
        """
        options = self._session.get_session_options()
        for key, value in self._mode_options.session.items():
            try:
                effective = options.get_session_config_entry(key)
            except RuntimeError:
                effective = None
            if effective != value:
                raise BenchError(
                    f"{model.name} cannot be measured in session mode {self._session_mode}: its "
                    f"optimized graph was not written to {get_cache_folder()}. Make the folder "
                    "writable, set EDGETL_CACHE to another one, or leave out the mode."
                )

    def infer(self, batch: Any) -> NDArray[np.float32]:
        """Return the logits, or the first output of a model from another tool."""
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

    def infer_confidence(
        self, batch: Any
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None] | None:
        """Return probabilities, and unknown scores if the model has any.

        None for a model from another tool, and in a CUDA graph, which computes only logits.
        """
        if not self._has_confidence:
            return None
        names = ["probabilities", "unknown_score"] if self._has_unknown_score else ["probabilities"]
        try:
            probabilities, *scores = self._run(names, {self._input_name: batch})
        except Exception as cause:  # onnxruntime's exceptions share no base class
            raise_provider_failure(self._session, cause)
            raise
        return probabilities, scores[0] if scores else None

    def stages(self) -> list[Stage]:
        """Return one stage, or three for a device with its own memory."""
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
        """Return the image if preprocessing is in the graph, else the preprocessed tensor.

        A variant of fixed size gets a resized image: its golden logits were computed on these.
        """
        if self._source.input == "image":
            return resize_to(image, self._source.size)[None]
        assert self._preprocessing is not None
        return preprocess(image, self._preprocessing)

    def prepare_batch(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Return the batch unchanged."""
        return batch

    def make_inputs(self, count: int) -> list[Any]:
        """Return the batch of the input file, or random batches of the model's types and shapes.

        A dynamic batch dimension has the requested size.

        Raises:
            BenchError: the model does not accept the input.
        """
        if self._source.input_file:
            batches = [self._load_input_file()]
        else:
            generators = [np.random.default_rng(seed) for seed in range(count)]
            batches = [self._make_random_input(generator) for generator in generators]
        try:
            self.infer(batches[0])
        except ProviderError:
            raise
        except Exception as cause:  # onnxruntime's exceptions share no base class
            expected = "; ".join(f"{node.name}: {node.type} {node.shape}" for node in self._inputs)
            kind = f"input {self._source.input_file}" if self._source.input_file else "random input"
            raise BenchError(
                f"{self._source.model} rejects the {kind}: {str(cause).splitlines()[0]} "
                f"Expected {expected}. Pass inputs with --inputs FILE.npy, "
                "or FILE.npz with one array per input."
            ) from cause
        return batches

    def _load_input_file(self) -> Any:
        path = self._source.input_file
        try:
            content = np.load(str(path), allow_pickle=False)
            is_npz = isinstance(content, np.lib.npyio.NpzFile)
            arrays = dict(content) if is_npz else {self._input_name: content}
        except (OSError, ValueError, EOFError) as cause:
            raise BenchError(
                f"{path} is not a .npy or .npz file of plain numbers ({cause}). "
                "Write it with numpy.save or numpy.savez."
            ) from cause
        missing = [node.name for node in self._inputs if node.name not in arrays]
        if missing:
            raise BenchError(
                f"{path} has no array for {', '.join(missing)}. "
                "Name the arrays of an .npz file after the model's inputs."
            )
        return {node.name: arrays[node.name] for node in self._inputs}

    def _make_random_input(self, generator: np.random.Generator) -> Any:
        arrays = {node.name: self._make_random_array(node, generator) for node in self._inputs}
        return arrays if len(arrays) > 1 else arrays[self._input_name]

    def _make_random_array(self, node: Any, generator: np.random.Generator) -> NDArray[Any]:
        dtype = node.type.removeprefix("tensor(").removesuffix(")")
        if dtype not in _NUMPY_DTYPES:
            raise BenchError(
                f"{self._source.model} takes {node.type} as {node.name}, "
                "which cannot be generated at random. Pass it with --inputs."
            )
        preprocessing = self._preprocessing
        is_image = dtype == "uint8"
        side = DEFAULT_IMAGE_SIDE if is_image else DEFAULT_TENSOR_SIDE
        if preprocessing is not None:
            side = preprocessing.resize if is_image else preprocessing.crop
        batch, *rest = node.shape or [1]
        if isinstance(batch, int) and self._source.batch not in (batch, 1):
            raise BenchError(
                f"{self._source.model} takes batches of {batch} only, "
                f"got --batch {self._source.batch}. Leave out --batch."
            )
        shape = [
            batch if isinstance(batch, int) else self._source.batch,
            *(size if isinstance(size, int) else side for size in rest),
        ]
        has_dynamic_channels = len(rest) == 3 and not isinstance(rest[-1], int)
        if is_image and has_dynamic_channels:
            shape[-1] = 3
        if dtype in _INTEGER_RANGES:
            low, high = _INTEGER_RANGES[dtype]
            integers = generator.integers(low, high, shape, np.int64, endpoint=True)
            return integers.astype(_NUMPY_DTYPES[dtype])
        return generator.random(shape, np.float32).astype(_NUMPY_DTYPES[dtype])

    def autotune(self, batch: Any) -> dict[str, str]:
        """Return no settings: the session options are ONNX Runtime's defaults."""
        return {}

    def describe(self, batch: Any) -> SessionRecord:
        """Return the session options that affect latency, and the share of nodes by provider."""
        options = self._session.get_session_options()
        is_default = self._session_mode == DEFAULT_MODE
        return SessionRecord(
            onnxruntime=onnxruntime.__version__,
            precision=self._mode_options.computes_in or self._source.precision,
            intra_op_threads=options.intra_op_num_threads,
            inter_op_threads=options.inter_op_num_threads,
            graph_optimization=str(options.graph_optimization_level).rpartition(".")[2],
            providers=tuple(self._session.get_providers()),
            io_binding=self._device_run is not None,
            session_mode=None if is_default else self._session_mode,
            session_options=self._mode_options.session or None,
            provider_options=self._mode_options.provider or None,
            node_share=self._compute_node_share(batch),
        )

    def _compute_node_share(self, batch: Any) -> dict[str, float]:
        assignments = None
        if self._source.provider != "cpu":
            assignments = read_node_assignments(self._session)
        if assignments is None:
            assignments = [
                NodeAssignment(node.node, node.operator, node.provider)
                for node in self.profile(batch, 1).nodes
            ]
            # Without a recorded partitioning the placement has not been checked yet.
            check_placement(assignments, self._session.get_providers())
        return provider_node_shares(node.provider for node in assignments)

    def profile(self, batch: Any, runs: int) -> OperatorProfile:
        """Return time, share and provider of every operator and node.

        The runtime's profiler times the host. If the host only launches kernels, `clock` is
        `host dispatch`: the times of the kernels themselves need a build with CUPTI
        (`--enable_cuda_profiling`), unlike PyPI's wheels.
        """
        source = self._source

        def open_session(prefix: Path) -> onnxruntime.InferenceSession:
            # Nodes are profiled one by one, so without a CUDA graph. Without IO binding a graph
            # would also replay stale addresses.
            is_graph = self._session_mode == CUDA_GRAPH_MODE
            return create_session(
                source.model,
                source.provider,
                source.threads,
                profile_prefix=prefix,
                precision=source.precision,
                session_mode=DEFAULT_MODE if is_graph else self._session_mode,
            )

        feed = batch if isinstance(batch, dict) else {self._input_name: batch}
        nodes = profile_nodes(open_session, feed, runs)
        return OperatorProfile(
            runs=runs,
            operators=summarize_operators(nodes),
            nodes=tuple(nodes),
            clock="host dispatch" if source.provider in DEVICE_TYPES else "host",
        )


def _capture_failed_message(model: Path, error_text: str) -> str:
    """Explain why a model has no CUDA graph, and what to do."""
    if "control flow" in error_text:
        reason = "it has control flow (If, Loop or Scan), which a CUDA graph cannot contain"
    else:
        reason = "not all of its nodes run on the GPU"
    return (
        f"{model.name} has no CUDA graph: {reason}. "
        "Export with `--input tensor` or a fixed image size, or leave cuda-graph out of --session."
    )
