"""CUDA graphs: capture a computation once and replay it as a single launch.

Source: PyTorch's notes on CUDA graphs ("CUDA semantics", section "CUDA Graphs"): warm-up on a side
stream, capture, then replay on fixed input and output buffers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

WARM_UP_RUNS = 3
"""Runs before capture: cuDNN's autotuning and a library's first allocations cannot be captured."""

InferenceFunction = Callable[[torch.Tensor], torch.Tensor]
InferenceCapture = Callable[[InferenceFunction, torch.Tensor], "CapturedGraph"]


@dataclass(frozen=True)
class CapturedGraph:
    """A CUDA graph with its input and output buffers."""

    input: torch.Tensor
    output: torch.Tensor
    """Output buffer, overwritten by every replay."""
    replay: Callable[[], None]


def capture_cuda_graph(compute: InferenceFunction, buffer: torch.Tensor) -> CapturedGraph:
    """Capture `compute(buffer)` on the current CUDA device.

    Args:
        compute: maps the input to the output without synchronizing with the device.
        buffer: input buffer of every replay, on the device.
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
    """Runner that replays CUDA graphs, one per shape and dtype of the input."""

    def __init__(
        self,
        compute: InferenceFunction,
        device: torch.device,
        capture: InferenceCapture = capture_cuda_graph,
    ) -> None:
        """Create a runner without graphs; they are captured on demand.

        Args:
            compute: maps the input to the output.
            device: device of the buffers.
            capture: captures the computation on its first input.
        """
        self._compute = compute
        self._device = device
        self._capture = capture
        self._graphs: dict[tuple[torch.Size, torch.dtype], CapturedGraph] = {}

    def upload(self, values: torch.Tensor) -> torch.Tensor:
        """Copy an input to its graph's buffer, captured if needed, and return the buffer."""
        graph = self._get_or_capture(values)
        graph.input.copy_(values)
        return graph.input

    def run(self, buffer: torch.Tensor) -> torch.Tensor:
        """Replay the graph on the buffer that `upload` returned.

        Returns:
            The output buffer. The next run with this shape overwrites it.

        Raises:
            ValueError: `buffer` is not the one that the graph reads.
        """
        graph = self._graphs.get((buffer.shape, buffer.dtype))
        if graph is None or graph.input is not buffer:
            raise ValueError(
                "The graph reads its own input buffer: call run() with the tensor "
                "that upload() returned."
            )
        graph.replay()
        return graph.output

    def _get_or_capture(self, values: torch.Tensor) -> CapturedGraph:
        key = (values.shape, values.dtype)
        if key not in self._graphs:
            buffer = torch.empty(values.shape, dtype=values.dtype, device=self._device)
            buffer.copy_(values)
            self._graphs[key] = self._capture(self._compute, buffer)
        return self._graphs[key]
