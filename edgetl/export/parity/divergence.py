"""Divergence of two versions of a network: find the first module whose output differs."""

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
"""Noise at a third of the signal; int8 networks that keep their accuracy have 15 to 40 dB."""
_NO_MODULES_MESSAGE = "The graph has no values that belong to single modules."


def describe_first_divergence(
    network: nn.Module,
    graph: NetworkGraph,
    onnx_network: onnx.ModelProto,
    pixels: NDArray[np.float32],
    tolerance: float,
) -> str:
    """Describe the first module, in graph order, whose output differs by more than `tolerance`.

    Args:
        network: the PyTorch network, in eval mode.
        graph: its export, for the names of the modules' outputs.
        onnx_network: the ONNX network to check, `pixels` -> `logits`.
        pixels: float32 [batch, 3, S, S].
        tolerance: relative to the module's largest absolute output, or to 1 if that is smaller.
    """
    reference = _pytorch_module_outputs(network, pixels)
    module_outputs = _select_existing_outputs(graph.module_outputs, onnx_network)
    modules = {path: name for path, name in module_outputs.items() if path in reference}
    if not modules:
        return _NO_MODULES_MESSAGE
    values = _onnx_module_outputs(onnx_network, modules, pixels)
    for path in modules:
        expected, actual = reference[path], values[path]
        if expected.shape != actual.shape:
            continue
        difference = float(np.abs(expected - actual).max())
        scale = max(1.0, float(np.abs(expected).max()))
        if not difference <= tolerance * scale:  # also true for NaN
            kind = type(network.get_submodule(path)).__name__
            return f"The first module that differs is {path} ({kind}): by {difference:.3g} of {scale:.3g}."
    return "No single module exceeds the tolerance; the difference grows over the network."


def describe_first_noisy_module(
    network: onnx.ModelProto,
    quantized: onnx.ModelProto,
    module_outputs: dict[str, str],
    pixels: NDArray[np.float32],
) -> str:
    """Describe the first module, in graph order, whose quantized output has too low an SQNR.

    Args:
        network: in float32, `pixels` -> `logits`.
        quantized: the smaller network.
        module_outputs: module path to the name of its value; see NetworkGraph.
        pixels: float32 [batch, 3, S, S].
    """
    modules = _select_existing_outputs(_select_existing_outputs(module_outputs, network), quantized)
    if not modules:
        return _NO_MODULES_MESSAGE
    reference = _onnx_module_outputs(network, modules, pixels)
    values = _onnx_module_outputs(quantized, _dequantized_outputs(modules, quantized), pixels)
    sqnrs_db = {
        path: sqnr_db(reference[path], values[path])
        for path in modules
        if np.isfinite(values[path]).all()
    }
    for path in modules:
        if path not in sqnrs_db:
            return f"The first module whose output is no longer finite is {path}."
        if sqnrs_db[path] < _MIN_SQNR_DB:
            return f"The first module that is lost in noise is {path}: {sqnrs_db[path]:.1f} dB of signal to noise."
    last_db = list(sqnrs_db.values())[-1]
    return f"No single module is lost in noise; noise grows over the network, to {last_db:.1f} dB of signal to noise."


def _select_existing_outputs(
    module_outputs: dict[str, str], network: onnx.ModelProto
) -> dict[str, str]:
    produced = {name for node in network.graph.node for name in node.output}
    return {path: value for path, value in module_outputs.items() if value in produced}


def _dequantized_outputs(modules: dict[str, str], quantized: onnx.ModelProto) -> dict[str, str]:
    # onnxruntime's quantizer may drop an activation (such as Relu) because the quantization after
    # it has the same effect. The value under the original name then lacks the activation.
    produced = {name for node in quantized.graph.node for name in node.output}
    outputs = {}
    for path, name in modules.items():
        dequantized = f"{name}_DequantizeLinear_Output"
        outputs[path] = dequantized if dequantized in produced else name
    return outputs


def _onnx_module_outputs(
    network: onnx.ModelProto, modules: dict[str, str], pixels: NDArray[np.float32]
) -> dict[str, NDArray[np.float32]]:
    model = with_outputs(network, sorted(set(modules.values())))
    session = create_session(model.SerializeToString(), spinning=False)
    names = [output.name for output in session.get_outputs()]
    values = dict(zip(names, session.run(names, {PIXELS: pixels}), strict=True))
    return {path: np.asarray(values[name], np.float32) for path, name in modules.items()}


def _pytorch_module_outputs(
    network: nn.Module, pixels: NDArray[np.float32]
) -> dict[str, NDArray[np.float32]]:
    outputs: dict[str, NDArray[np.float32]] = {}

    def register_hook(path: str) -> torch.utils.hooks.RemovableHandle:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, torch.Tensor):
                outputs[path] = output.detach().clone().numpy()

        return network.get_submodule(path).register_forward_hook(hook)

    handles = [register_hook(path) for path, _ in network.named_modules() if path]
    try:
        with torch.inference_mode():
            network(torch.from_numpy(pixels))
    finally:
        for handle in handles:
            handle.remove()
    return outputs
