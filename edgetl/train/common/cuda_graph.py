"""A computation captured once in a CUDA graph and replayed: no kernel is launched one by one.

Source: PyTorch's notes on CUDA graphs ("CUDA semantics", section "CUDA Graphs"): warm-up on a side
stream, capture, then replay on fixed input and output buffers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

WARM_UP_RUNS = 3
"""Before capture, in which neither cuDNN's search for algorithms nor a library's first allocations may fall."""

InferenceFunction = Callable[[torch.Tensor], torch.Tensor]
InferenceCapture = Callable[[InferenceFunction, torch.Tensor], "CapturedGraph"]


@dataclass(frozen=True)
class CapturedGraph:
    """One graph with the buffers that it reads and writes."""

    input: torch.Tensor
    output: torch.Tensor
    """Written anew by every replay."""
    replay: Callable[[], None]


def capture_cuda_graph(compute: InferenceFunction, buffer: torch.Tensor) -> CapturedGraph:
    """Capture `compute(buffer)` on the current CUDA device.

    Args:
        compute: from input to output, without waiting for the device in between.
        buffer: the input that every replay will read, on the device.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_RUNS):
            compute(buffer)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        output = compute(buffer)
    return CapturedGraph(buffer, output, graph.replay)


class CudaGraphRunner:
    """A computation by replay; each shape and type of input has a graph of its own."""

    def __init__(
        self,
        compute: InferenceFunction,
        device: torch.device,
        capture: InferenceCapture = capture_cuda_graph,
    ) -> None:
        """Args:
        compute: from input to output.
        device: where the buffers are.
        capture: records the computation on its first input.
        """
        self._compute, self._device, self._capture = compute, device, capture
        self._graphs: dict[tuple[torch.Size, torch.dtype], CapturedGraph] = {}

    def upload(self, given: torch.Tensor) -> torch.Tensor:
        """Copy an input into its graph's buffer, which is returned; a new shape is captured first."""
        graph = self._get_or_capture(given)
        graph.input.copy_(given)
        return graph.input

    def run(self, buffer: torch.Tensor) -> torch.Tensor:
        """Replay the graph on the buffer that `upload` returned.

        Returns:
            The output's buffer: the next run of this shape overwrites it.

        Raises:
            ValueError: it isn't that buffer, so a replay would read something else.
        """
        graph = self._graphs.get((buffer.shape, buffer.dtype))
        if graph is None or graph.input is not buffer:
            raise ValueError(
                "The graph reads its own input buffer: run the tensor that upload returned."
            )
        graph.replay()
        return graph.output

    def _get_or_capture(self, given: torch.Tensor) -> CapturedGraph:
        key = (given.shape, given.dtype)
        if key not in self._graphs:
            buffer = torch.empty(given.shape, dtype=given.dtype, device=self._device)
            buffer.copy_(given)
            self._graphs[key] = self._capture(self._compute, buffer)
        return self._graphs[key]
