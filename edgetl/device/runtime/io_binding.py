"""Run a session with inputs and outputs in device memory, separate from the copies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgetl.device.runtime.providers import CUDA_PROVIDERS

if TYPE_CHECKING:
    import onnxruntime

DEVICE_TYPES = dict.fromkeys(CUDA_PROVIDERS, "cuda")
"""Execution providers with their own memory, and onnxruntime's name of that memory."""

GRAPH_CAPTURE_RUNS = 3
"""Runs to capture a graph: two that allocate memory, and the captured one.

Newer versions of onnxruntime repeat a run by themselves.
"""


class DeviceRunner(Protocol):
    """Inference with inputs and outputs in device memory, in three synchronous steps."""

    def upload(self, feed: dict[str, NDArray[Any]]) -> Any:
        """Copy the inputs to the device."""
        ...

    def compute(self, binding: Any) -> Sequence[onnxruntime.OrtValue]:
        """Run the model on the result of `upload`."""
        ...

    def download(self, outputs: Sequence[onnxruntime.OrtValue]) -> NDArray[np.float32]:
        """Copy the output to the host."""
        ...


class IoBindingRunner:
    """Inference with IO binding (ONNX Runtime's Python API, `InferenceSession.io_binding`).

    Device memory is allocated once for each input shape and overwritten by each upload, as in a
    service that processes image after image.
    """

    def __init__(
        self, session: onnxruntime.InferenceSession, output_name: str, device_type: str
    ) -> None:
        """Bind the session.

        Args:
            session: the session to run.
            output_name: name of the output to compute.
            device_type: onnxruntime's name of the memory, `cuda` or `cpu`; its first device is
                used.
        """
        self._session = session
        self._output_name = output_name
        self._device_type = device_type
        self._binding = session.io_binding()
        self._device_inputs: dict[str, onnxruntime.OrtValue] = {}

    def upload(self, feed: dict[str, NDArray[Any]]) -> onnxruntime.IOBinding:
        """Copy the inputs to the device."""
        import onnxruntime

        for name, array in feed.items():
            device_input = self._device_inputs.get(name)
            if device_input is None or tuple(device_input.shape()) != array.shape:
                # Created from the array itself, a value in host memory would not be a copy.
                device_input = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                    array.shape, array.dtype, self._device_type, 0
                )
                self._device_inputs[name] = device_input
                self._binding.bind_ortvalue_input(name, device_input)
                # The output allocated for another shape does not fit.
                self._binding.bind_output(self._output_name, self._device_type, 0)
            device_input.update_inplace(np.ascontiguousarray(array))
        self._binding.synchronize_inputs()
        return self._binding

    def compute(self, binding: onnxruntime.IOBinding) -> Sequence[onnxruntime.OrtValue]:
        """Run the model; the outputs stay in device memory."""
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        outputs: Sequence[onnxruntime.OrtValue] = binding.get_outputs()
        return outputs

    @staticmethod
    def download(outputs: Sequence[onnxruntime.OrtValue]) -> NDArray[np.float32]:
        """Copy the output to the host."""
        array: NDArray[np.float32] = outputs[0].numpy()
        return array


@dataclass(frozen=True)
class GraphBuffers:
    """Fixed device memory for one input shape, and the graph that uses it."""

    binding: onnxruntime.IOBinding
    inputs: dict[str, onnxruntime.OrtValue]
    output: onnxruntime.OrtValue
    run_options: onnxruntime.RunOptions
    """Run options with the id of the graph to replay."""


class OrtCudaGraphRunner:
    """Inference with CUDA graphs: a run launches one graph instead of separate kernels.

    A graph replays the addresses that it was captured with, so each input shape has its own fixed
    buffers and its own graph id. Without an id onnxruntime would replay the first shape's graph for
    all shapes. Allocation and capture are complete when `upload` returns.

    Source: onnxruntime's page "CUDA Execution Provider", section "Using CUDA Graphs".
    """

    def __init__(
        self, session: onnxruntime.InferenceSession, output_name: str, device_type: str
    ) -> None:
        """Initialize the runner; graphs are captured by `upload`.

        Args:
            session: a session with `enable_cuda_graph`.
            output_name: name of the output to compute.
            device_type: onnxruntime's name of the memory; its first device is used.
        """
        self._session = session
        self._output_name = output_name
        self._device_type = device_type
        self._buffers: dict[tuple[tuple[str, tuple[int, ...], str], ...], GraphBuffers] = {}

    def upload(self, feed: dict[str, NDArray[Any]]) -> GraphBuffers:
        """Copy the inputs to their shape's buffers; capture a graph first for a new shape."""
        key = tuple((name, array.shape, array.dtype.str) for name, array in feed.items())
        if key not in self._buffers:
            self._buffers[key] = self._capture_graph(feed, graph_id=len(self._buffers) + 1)
        buffers = self._buffers[key]
        self._copy_inputs(buffers.inputs, feed)
        buffers.binding.synchronize_inputs()
        return buffers

    def compute(self, binding: GraphBuffers) -> Sequence[onnxruntime.OrtValue]:
        """Replay the graph.

        The output stays in device memory, and the next run with this shape overwrites it.
        """
        self._session.run_with_iobinding(binding.binding, binding.run_options)
        binding.binding.synchronize_outputs()
        return [binding.output]

    @staticmethod
    def download(outputs: Sequence[onnxruntime.OrtValue]) -> NDArray[np.float32]:
        """Copy the output to the host."""
        return IoBindingRunner.download(outputs)

    def _capture_graph(self, feed: dict[str, NDArray[Any]], graph_id: int) -> GraphBuffers:
        import onnxruntime

        inputs = {
            name: onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                array.shape, array.dtype, self._device_type, 0
            )
            for name, array in feed.items()
        }
        self._copy_inputs(inputs, feed)
        binding = self._session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        # A run without capture, whose output onnxruntime allocates, gives the output's shape.
        binding.bind_output(self._output_name, self._device_type, 0)
        binding.synchronize_inputs()
        self._session.run_with_iobinding(binding, _graph_run_options(-1))
        binding.synchronize_outputs()
        example = binding.get_outputs()[0].numpy()
        output = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
            example.shape, example.dtype, self._device_type, 0
        )
        binding.clear_binding_outputs()
        binding.bind_ortvalue_output(self._output_name, output)
        buffers = GraphBuffers(binding, inputs, output, _graph_run_options(graph_id))
        for _ in range(GRAPH_CAPTURE_RUNS):
            self.compute(buffers)
        return buffers

    @staticmethod
    def _copy_inputs(
        inputs: dict[str, onnxruntime.OrtValue], feed: dict[str, NDArray[Any]]
    ) -> None:
        for name, array in feed.items():
            inputs[name].update_inplace(np.ascontiguousarray(array))


def _graph_run_options(graph_id: int) -> onnxruntime.RunOptions:
    """Return run options with a graph id; -1 runs without capture or replay.

    Source: onnxruntime_run_options_config_keys.h.
    """
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph_id))
    return options
