"""Runs whose inputs and outputs lie on the device: what it computes, apart from the way there and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgetl.device.providers import CUDA_PROVIDERS

MEMORY = dict.fromkeys(CUDA_PROVIDERS, "cuda")
"""Execution providers whose memory is not the host's, and onnxruntime's name for it."""


class BoundRun:
    """A session by IO binding (ONNX Runtime's Python API, `InferenceSession.io_binding`): three steps, each of which waits for its end.

    The copies in device memory are allocated once for each shape and written anew, as a service that answers image after image would.
    """

    def __init__(self, session: onnxruntime.InferenceSession, output: str, memory: str) -> None:
        """Args:
        output: the one that is asked for.
        memory: a device as onnxruntime names it, `cuda` or `cpu`; the first of its kind.
        """
        self._session, self._output, self._memory = session, output, memory
        self._binding = session.io_binding()
        self._copies: dict[str, onnxruntime.OrtValue] = {}

    def upload(self, feed: dict[str, NDArray[Any]]) -> onnxruntime.IOBinding:
        """Copy the inputs to the device."""
        for name, array in feed.items():
            kept = self._copies.get(name)
            if kept is None or tuple(kept.shape()) != array.shape:
                # Not from the array itself: in the host's memory that would be no copy.
                kept = self._copies[name] = onnxruntime.OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype, self._memory, 0)
                self._binding.bind_ortvalue_input(name, kept)
                # Bound anew too: what it allocated for another shape does not fit.
                self._binding.bind_output(self._output, self._memory, 0)
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
