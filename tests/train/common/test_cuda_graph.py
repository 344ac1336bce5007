"""CUDA graph runner with a fake capture, and with the real one on a GPU."""

from __future__ import annotations

import pytest
import torch

from edgetl.train.common.cuda_graph import (
    CapturedGraph,
    CudaGraphRunner,
    InferenceFunction,
    capture_cuda_graph,
)


class RecordedCapture:
    """A capture that replays by computing again from the buffer, with counters."""

    def __init__(self) -> None:
        self.buffers: list[torch.Tensor] = []
        self.replays = 0

    def __call__(self, compute: InferenceFunction, buffer: torch.Tensor) -> CapturedGraph:
        self.buffers.append(buffer)
        output = compute(buffer)

        def replay() -> None:
            self.replays += 1
            output.copy_(compute(buffer))

        return CapturedGraph(buffer, output, replay)


def double(values: torch.Tensor) -> torch.Tensor:
    return values * 2


def test_runner_captures_once_and_replays() -> None:
    capture = RecordedCapture()
    runner = CudaGraphRunner(double, torch.device("cpu"), capture)
    outputs = []
    for value in (1.0, 2.0, 3.0):
        output = runner.run(runner.upload(torch.full((2, 3), value)))
        outputs.append((output.data_ptr(), float(output[0, 0])))
    assert [value for _, value in outputs] == [2.0, 4.0, 6.0]
    assert len({address for address, _ in outputs}) == 1, "the output buffer does not move"
    assert (len(capture.buffers), capture.replays) == (1, 3)


def test_runner_copies_inputs_into_one_buffer() -> None:
    capture = RecordedCapture()
    runner = CudaGraphRunner(double, torch.device("cpu"), capture)
    values = torch.ones(2, 3)
    buffer = runner.upload(values)
    assert buffer is capture.buffers[0]
    assert buffer.data_ptr() != values.data_ptr()
    values.fill_(7.0)
    assert float(buffer.max()) == 1.0
    assert runner.upload(values) is buffer
    assert float(buffer.min()) == 7.0


@pytest.mark.parametrize(
    "other", [torch.ones(4, 3), torch.ones(2, 3, dtype=torch.uint8)], ids=["shape", "type"]
)
def test_runner_captures_again_for_another_shape_or_type(other: torch.Tensor) -> None:
    capture = RecordedCapture()
    runner = CudaGraphRunner(double, torch.device("cpu"), capture)
    first = torch.ones(2, 3)
    for values in (first, other, first, other):
        output = runner.run(runner.upload(values))
        assert (output.shape, output.dtype) == (values.shape, values.dtype)
    assert len(capture.buffers) == 2


def test_runner_rejects_tensors_other_than_its_buffer() -> None:
    runner = CudaGraphRunner(double, torch.device("cpu"), RecordedCapture())
    with pytest.raises(ValueError, match="its own input buffer"):
        runner.run(torch.ones(2, 3))
    runner.upload(torch.ones(2, 3))
    with pytest.raises(ValueError, match="its own input buffer"):
        runner.run(torch.ones(2, 3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_real_graph_reads_new_inputs() -> None:
    runner = CudaGraphRunner(double, torch.device("cuda"), capture_cuda_graph)
    for value in (1.0, 5.0):
        output = runner.run(runner.upload(torch.full((2, 3), value)))
        torch.cuda.synchronize()
        assert output.cpu().tolist() == [[2 * value] * 3] * 2
