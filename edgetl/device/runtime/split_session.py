"""Session of a split model: preprocessing, network and postprocessing in files of their own.

An NPU takes the network whole: its shapes are static and it has no control flow. What surrounds it
runs on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnxruntime


class SplitSession:
    """Three sessions that behave like the `onnxruntime.InferenceSession` of one file.

    The network takes one image, so a batch is run image by image. Other methods than those below
    are the network's: its providers, metadata, options, node placement and profile.
    """

    def __init__(
        self,
        preprocessing: onnxruntime.InferenceSession,
        network: onnxruntime.InferenceSession,
        postprocessing: onnxruntime.InferenceSession,
    ) -> None:
        self._preprocessing = preprocessing
        self._network = network
        self._postprocessing = postprocessing
        self._network_input = network.get_inputs()[0].name
        self._network_outputs = [output.name for output in network.get_outputs()]
        self._postprocessing_inputs = [node.name for node in postprocessing.get_inputs()]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def get_inputs(self) -> Sequence[Any]:
        """Return the inputs of the preprocessing."""
        return list(self._preprocessing.get_inputs())

    def get_outputs(self) -> Sequence[Any]:
        """Return the outputs of the network and of the postprocessing."""
        return [*self._network.get_outputs(), *self._postprocessing.get_outputs()]

    def run(
        self,
        outputs: Sequence[str] | None,
        feed: Mapping[str, NDArray[Any]],
        options: onnxruntime.RunOptions | None = None,
    ) -> list[NDArray[Any]]:
        """Return the values called `outputs`, all if None, for a batch of photos."""
        (network_inputs,) = self._preprocessing.run(None, dict(feed), options)
        rows = [
            self._network.run(
                None, {self._network_input: network_inputs[index : index + 1]}, options
            )
            for index in range(len(network_inputs))
        ]
        columns = (np.concatenate(parts) for parts in zip(*rows, strict=True))
        values = dict(zip(self._network_outputs, columns, strict=True))
        names = [output.name for output in self.get_outputs()] if outputs is None else outputs
        remaining = [name for name in names if name not in values]
        if remaining:
            inputs = {name: values[name] for name in self._postprocessing_inputs}
            results = self._postprocessing.run(remaining, inputs, options)
            values |= dict(zip(remaining, results, strict=True))
        return [values[name] for name in names]
