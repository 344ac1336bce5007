"""Runs whose inputs and outputs lie on the device: what it computes, apart from the way there and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgetl.device.runtime.providers import CUDA_PROVIDERS

DEVICE_TYPES = dict.fromkeys(CUDA_PROVIDERS, "cuda")
"""Execution providers whose memory is not the host's, and onnxruntime's name for it."""


GRAPH_CAPTURE_RUNS = 3
"""Runs until a graph is there: two that allocate memory, and the one that is captured. Newer onnxruntime repeats a run by itself."""


class DeviceRunner(Protocol):
    """The three steps of a run whose inputs and outputs lie on the device; each waits for its end."""

    def upload(self, feed: dict[str, NDArray[Any]]) -> Any:
        """Copy the inputs to the device."""
        ...

    def compute(self, binding: Any) -> Sequence[onnxruntime.OrtValue]:
        """Run the model on what `upload` returned."""
        ...

    def download(self, outputs: Sequence[onnxruntime.OrtValue]) -> NDArray[np.float32]:
        """Copy the output to the host."""
        ...


class IoBindingRunner:
    """A session by IO binding (ONNX Runtime's Python API, `InferenceSession.io_binding`): three steps, each of which waits for its end.

    The copies in device memory are allocated once for each shape and written anew, as a service that answers image after image would.
    """

    def __init__(self, session: onnxruntime.InferenceSession, output: str, memory: str) -> None:
        """Args:
        output: the one that is asked for.
        memory: a device as onnxruntime names it, `cuda` or `cpu`; the first of its kind.
        """
        self._session, self._output_name, self._device_type = session, output, memory
        self._binding = session.io_binding()
        self._device_inputs: dict[str, onnxruntime.OrtValue] = {}

    def upload(self, feed: dict[str, NDArray[Any]]) -> onnxruntime.IOBinding:
        """Copy the inputs to the device."""
        for name, array in feed.items():
            kept = self._device_inputs.get(name)
            if kept is None or tuple(kept.shape()) != array.shape:
                # Not from the array itself: in the host's memory that would be no copy.
                kept = self._device_inputs[name] = (
                    onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                        array.shape, array.dtype, self._device_type, 0
                    )
                )
                self._binding.bind_ortvalue_input(name, kept)
                # Bound anew too: what it allocated for another shape does not fit.
                self._binding.bind_output(self._output_name, self._device_type, 0)
            kept.update_inplace(np.ascontiguousarray(array))
        self._binding.synchronize_inputs()
        return self._binding

    def compute(self, binding: onnxruntime.IOBinding) -> Sequence[onnxruntime.OrtValue]:
        """Run the model where its inputs lie; the outputs stay there."""
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        outputs: Sequence[onnxruntime.OrtValue] = binding.get_outputs()
        return outputs

    @staticmethod
    def download(outputs: Sequence[onnxruntime.OrtValue]) -> NDArray[np.float32]:
        """Copy the output to the host."""
        answer: NDArray[np.float32] = outputs[0].numpy()
        return answer


@dataclass(frozen=True)
class GraphBuffers:
    """Fixed device memory of one shape of inputs, and the graph that reads and writes it."""

    binding: onnxruntime.IOBinding
    inputs: dict[str, onnxruntime.OrtValue]
    output: onnxruntime.OrtValue
    run_options: onnxruntime.RunOptions
    """Names the graph to replay."""


class OrtCudaGraphRunner:
    """A session with `enable_cuda_graph`: a run launches one graph instead of kernel after kernel.

    A graph replays the addresses that it was captured with, so each shape of inputs has buffers
    that stay where they are, and a graph id of its own: without one, onnxruntime would replay the
    first shape's graph for every other. Allocation and capture are over before `upload` returns.

    Source: onnxruntime's page "CUDA Execution Provider", section "Using CUDA Graphs".
    """

    def __init__(self, session: onnxruntime.InferenceSession, output: str, memory: str) -> None:
        """Args:
        session: made with CUDA graphs enabled.
        output: the one that is asked for.
        memory: a device as onnxruntime names it; the first of its kind.
        """
        self._session, self._output_name, self._device_type = session, output, memory
        self._buffers: dict[tuple[tuple[str, tuple[int, ...], str], ...], GraphBuffers] = {}

    def upload(self, feed: dict[str, NDArray[Any]]) -> GraphBuffers:
        """Copy the inputs into their shape's buffers; a new shape is captured first."""
        key = tuple((name, array.shape, array.dtype.str) for name, array in feed.items())
        if key not in self._buffers:
            self._buffers[key] = self._capture_graph(feed, graph_id=len(self._buffers) + 1)
        buffers = self._buffers[key]
        self._copy_inputs(buffers.inputs, feed)
        buffers.binding.synchronize_inputs()
        return buffers

    def compute(self, binding: GraphBuffers) -> Sequence[onnxruntime.OrtValue]:
        """Replay the graph. The output stays on the device, where the next run of this shape overwrites it."""
        self._session.run_with_iobinding(binding.binding, binding.run_options)
        binding.binding.synchronize_outputs()
        return [binding.output]

    @staticmethod
    def download(outputs: Sequence[onnxruntime.OrtValue]) -> NDArray[np.float32]:
        """Copy the output to the host."""
        return IoBindingRunner.download(outputs)

    def _capture_graph(self, feed: dict[str, NDArray[Any]], graph_id: int) -> GraphBuffers:
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
        # One run without capture, whose output onnxruntime allocates, tells the output's shape.
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
    """Return run options that name a graph; -1 runs without capture or replay (onnxruntime_run_options_config_keys.h)."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph_id))
    return options
