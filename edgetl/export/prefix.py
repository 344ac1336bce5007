"""Frozen blocks in ONNX Runtime: what training puts every image through only once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from edgetl.device.session import create_session
from edgetl.export.network_graph import export_module


def onnx_prefix(module: nn.Module, example: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, ...]]:
    """A frozen module (values, ...) -> (values, ...) as a session on the CPU; float32, the first axis is the batch.

    Raises:
        ExportError: the exporter refuses the module.
        BundleError: ONNX Runtime refuses what the exporter wrote.
    """
    names = [f"value{at}" for at in range(len(example))]
    exported = export_module(module, example, names)
    # PyTorch works in the same process: threads that wait in a busy loop would take its cores.
    session = create_session(exported.SerializeToString(), spinning=False)
    outputs = [output.name for output in session.get_outputs()]

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        feeds = {name: value.contiguous().numpy() for name, value in zip(names, values, strict=True)}
        return tuple(torch.from_numpy(output) for output in session.run(outputs, feeds))

    return run
