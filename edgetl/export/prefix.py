"""Frozen blocks in ONNX Runtime: what training puts every image through only once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx

from edgetl.device.session import create_session
from edgetl.export.traced_graph import traced_graph


def onnx_prefix(
    piece: fx.GraphModule, example: tuple[Tensor, ...]
) -> Callable[..., tuple[Tensor, ...]]:
    """A frozen piece (values, ...) -> (values, ...), traced down to PyTorch's modules, as a session on the CPU; float32.

    Raises:
        ExportError: an operator that is not known.
        BundleError: ONNX Runtime refuses what was written.
    """
    names = [f"value{at}" for at in range(len(example))]
    exported = traced_graph(piece, example, names)
    # PyTorch works in the same process: threads that wait in a busy loop would take its cores.
    session = create_session(
        exported.SerializeToString(), threads=torch.get_num_threads(), spinning=False
    )
    outputs = [output.name for output in session.get_outputs()]

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        feeds = {
            name: value.contiguous().numpy() for name, value in zip(names, values, strict=True)
        }
        return tuple(torch.from_numpy(output) for output in session.run(outputs, feeds))

    return run
