"""Where two versions of a network part ways: the first module whose output differs."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from edgetl.device.runtime.session import create_session
from edgetl.export.graph.assemble import with_outputs
from edgetl.export.graph.preprocessing import PIXELS
from edgetl.export.graph.torch_export import NetworkGraph
from edgetl.export.quantize.scoring import sqnr_db

_MIN_SQNR_DB = 10.0
"""Noise of a third of the signal's size; int8 that keeps its accuracy has 15 to 40 dB everywhere."""
_NO_MODULES_MESSAGE = "The modules could not be told apart in the graph."


def describe_first_divergence(
    network: nn.Module,
    graph: NetworkGraph,
    part: onnx.ModelProto,
    pixels: NDArray[np.float32],
    tolerance: float,
) -> str:
    """One sentence naming the first module, in graph order, whose output differs by more than `tolerance` of its own largest value.

    Args:
        network: the PyTorch network, in eval mode.
        graph: its export, for the names of the modules' outputs.
        part: the ONNX network under test, `pixels` -> `logits`.
        pixels: float32 [batch, 3, S, S].
        tolerance: relative to the module's largest absolute output, at least 1.
    """
    reference = _pytorch_module_outputs(network, pixels)
    modules = {
        path: value
        for path, value in _select_existing_outputs(graph.module_outputs, part).items()
        if path in reference
    }
    if not modules:
        return _NO_MODULES_MESSAGE
    values = _onnx_module_outputs(part, modules, pixels)
    for path in modules:
        expected, actual = reference[path], values[path]
        if expected.shape != actual.shape:
            continue
        difference, scale = (
            float(np.abs(expected - actual).max()),
            max(1.0, float(np.abs(expected).max())),
        )
        if not difference <= tolerance * scale:
            kind = type(network.get_submodule(path)).__name__
            return f"The first module that differs is {path} ({kind}): by {difference:.3g} of {scale:.3g}."
    return "No single module differs that much: the difference grows over the network."


def describe_first_noisy_module(
    network: onnx.ModelProto,
    smaller: onnx.ModelProto,
    module_outputs: dict[str, str],
    pixels: NDArray[np.float32],
) -> str:
    """One sentence naming the first module, in graph order, whose output in the smaller network is mostly lost in noise.

    Args:
        network: in float32, `pixels` -> `logits`.
        module_outputs: module path to the name of its value; see NetworkGraph.
        pixels: float32 [batch, 3, S, S].
    """
    modules = _select_existing_outputs(_select_existing_outputs(module_outputs, network), smaller)
    if not modules:
        return _NO_MODULES_MESSAGE
    reference, values = (
        _onnx_module_outputs(network, modules, pixels),
        _onnx_module_outputs(smaller, _dequantized_outputs(modules, smaller), pixels),
    )
    noise = {
        path: sqnr_db(reference[path], values[path])
        for path in modules
        if np.isfinite(values[path]).all()
    }
    for path in modules:
        if path not in noise:
            return f"The first module whose output is no longer finite is {path}."
        if noise[path] < _MIN_SQNR_DB:
            return f"The first module that is lost in noise is {path}: {noise[path]:.1f} dB of signal to noise."
    return f"No single module is lost in noise: it grows over the network, to {list(noise.values())[-1]:.1f} dB of signal to noise."


def _select_existing_outputs(
    module_outputs: dict[str, str], network: onnx.ModelProto
) -> dict[str, str]:
    produced = {name for node in network.graph.node for name in node.output}
    return {path: value for path, value in module_outputs.items() if value in produced}


def _dequantized_outputs(modules: dict[str, str], quantized: onnx.ModelProto) -> dict[str, str]:
    # onnxruntime's quantizer leaves an activation to the rounding behind it: the value of that name has not been through it yet.
    produced = {name for node in quantized.graph.node for name in node.output}
    rounded = {path: f"{value}_DequantizeLinear_Output" for path, value in modules.items()}
    return {
        path: rounded[path] if rounded[path] in produced else value
        for path, value in modules.items()
    }


def _onnx_module_outputs(
    network: onnx.ModelProto, modules: dict[str, str], pixels: NDArray[np.float32]
) -> dict[str, NDArray[np.float32]]:
    session = create_session(
        with_outputs(network, sorted(set(modules.values()))).SerializeToString(), spinning=False
    )
    names = [output.name for output in session.get_outputs()]
    values = dict(zip(names, session.run(names, {PIXELS: pixels}), strict=True))
    return {path: np.asarray(values[name], np.float32) for path, name in modules.items()}


def _pytorch_module_outputs(
    network: nn.Module, pixels: NDArray[np.float32]
) -> dict[str, NDArray[np.float32]]:
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
