"""Where two versions of a network part ways: the first module whose output differs."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from edgetl.device.session import create_session
from edgetl.export.graph import with_outputs
from edgetl.export.network_graph import NetworkGraph
from edgetl.export.preprocessing_graph import PIXELS


def first_divergence(network: nn.Module, graph: NetworkGraph, part: onnx.ModelProto, pixels: NDArray[np.float32], tolerance: float) -> str:
    """One sentence naming the first module, in graph order, whose output differs by more than `tolerance` of its own largest value.

    Args:
        network: the PyTorch network, in eval mode.
        graph: its export, for the names of the modules' outputs.
        part: the ONNX network under test, `pixels` -> `logits`.
        pixels: float32 [batch, 3, S, S].
        tolerance: relative to the module's largest absolute output, at least 1.
    """
    reference = _module_outputs(network, pixels)
    produced = {name for node in part.graph.node for name in node.output}
    modules = {path: value for path, value in graph.module_outputs.items() if path in reference and value in produced}
    if not modules:
        return "The modules could not be told apart in the graph."
    session = create_session(with_outputs(part, sorted(set(modules.values()))).SerializeToString(), spinning=False)
    names = [output.name for output in session.get_outputs()]
    values = dict(zip(names, session.run(names, {PIXELS: pixels}), strict=True))
    for path, name in modules.items():
        expected, actual = reference[path], values[name]
        if expected.shape != actual.shape:
            continue
        difference, scale = float(np.abs(expected - actual).max()), max(1.0, float(np.abs(expected).max()))
        if not difference <= tolerance * scale:
            kind = type(network.get_submodule(path)).__name__
            return f"The first module that differs is {path} ({kind}): by {difference:.3g} of {scale:.3g}."
    return "No single module differs that much: the difference grows over the network."


def _module_outputs(network: nn.Module, pixels: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    outputs: dict[str, NDArray[np.float32]] = {}

    def keep(path: str) -> torch.utils.hooks.RemovableHandle:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, torch.Tensor):
                outputs[path] = output.detach().clone().numpy()

        return network.get_submodule(path).register_forward_hook(hook)

    handles = [keep(path) for path, _ in network.named_modules() if path]
    try:
        with torch.inference_mode():
            network(torch.from_numpy(pixels))
    finally:
        for handle in handles:
            handle.remove()
    return outputs
