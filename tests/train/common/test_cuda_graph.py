"""The graph runner with a capture that records what it is given; on a GPU, the real one too."""

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
    """Replays by computing again from the buffer, and counts."""

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
    assert len({address for address, _ in outputs}) == 1, "the output's buffer stays where it is"
    assert (len(capture.buffers), capture.replays) == (1, 3)


def test_runner_copies_inputs_into_one_buffer() -> None:
    capture = RecordedCapture()
    runner = CudaGraphRunner(double, torch.device("cpu"), capture)
    given = torch.ones(2, 3)
    buffer = runner.upload(given)
    assert buffer is capture.buffers[0]
    assert buffer.data_ptr() != given.data_ptr()
    given.fill_(7.0)
    assert float(buffer.max()) == 1.0
    assert runner.upload(given) is buffer
    assert float(buffer.min()) == 7.0


@pytest.mark.parametrize(
    "other", [torch.ones(4, 3), torch.ones(2, 3, dtype=torch.uint8)], ids=["shape", "type"]
)
def test_runner_captures_anew_for_another_input(other: torch.Tensor) -> None:
    capture = RecordedCapture()
    runner = CudaGraphRunner(double, torch.device("cpu"), capture)
    first = torch.ones(2, 3)
    for given in (first, other, first, other):
        output = runner.run(runner.upload(given))
        assert (output.shape, output.dtype) == (given.shape, given.dtype)
    assert len(capture.buffers) == 2


def test_runner_refuses_a_tensor_that_it_would_not_read() -> None:
    runner = CudaGraphRunner(double, torch.device("cpu"), RecordedCapture())
    with pytest.raises(ValueError, match="its own input buffer"):
        runner.run(torch.ones(2, 3))
    runner.upload(torch.ones(2, 3))
    with pytest.raises(ValueError, match="its own input buffer"):
        runner.run(torch.ones(2, 3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_real_graph_follows_its_input() -> None:
    runner = CudaGraphRunner(double, torch.device("cuda"), capture_cuda_graph)
    for value in (1.0, 5.0):
        output = runner.run(runner.upload(torch.full((2, 3), value)))
        torch.cuda.synchronize()
        assert output.cpu().tolist() == [[2 * value] * 3] * 2
