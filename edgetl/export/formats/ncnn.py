"""Conversion to ncnn with pnnx, its converter from ONNX."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx
import onnx.utils
import pnnx
from onnx import TensorProto, helper, numpy_helper

from edgetl.core.errors import ExportError
from edgetl.core.progress import LOGGER
from edgetl.export.formats.ncnn_int8 import quantize_int8
from edgetl.export.formats.ncnn_model import NcnnLayer, read_layers, write_param
from edgetl.export.formats.task import ConversionTask, ConvertedFile
from edgetl.export.graph.confidence import UNKNOWN_SCORE
from edgetl.export.graph.preprocessing import PIXELS

_TIMEOUT_S = 600
_NEARNESS, _SCORE_OF_THE_REST = "unknown_nearness", "unknown_rest"
"""Values from which `unknown_score` is computed: negative distances, and its other terms."""
_SMALLEST_DIFFERENCE, _FAR_AWAY = "-1e-30", 1e6
_MAXIMUM = {0: "4", 1: "1", 4: "1", 5: "1"}
"""Parameters of `Reduction`: operation max over all values, which leaves an array of length 1."""
_SUBTRACT = {0: "1"}


def convert_to_ncnn(task: ConversionTask) -> list[ConvertedFile]:
    """Convert the network, and quantize it if int8 is wanted.

    bfloat16 is an option of the session, so that its variant shares the files of float32.

    Raises:
        ExportError: pnnx cannot convert the network.
    """
    files = task.paths("ncnn", "ncnn-fp32")
    param, weights = files
    try:
        layers = _convert(task.float32.model, task.crop, weights)
    except ExportError as cause:
        if UNKNOWN_SCORE not in {output.name for output in task.float32.model.graph.output}:
            raise
        LOGGER.warning("The files for ncnn do not compute unknown_score: %s", cause)
        layers = _convert(_without_score(task.float32.model), task.crop, weights)
    write_param(param, layers)
    converted = [
        ConvertedFile("ncnn-fp32", files, "fp32"),
        ConvertedFile("ncnn-bf16", files, "bf16"),
    ]
    if task.wants_int8:
        try:
            converted.append(quantize_int8(task, layers, weights.read_bytes()))
        except ExportError as cause:
            LOGGER.warning("No variant ncnn-int8: %s", cause)
    return converted


def _convert(model: onnx.ModelProto, crop: int, weights: Path) -> list[NcnnLayer]:
    """Convert a model, write the weights and return the layers, with values named as in ONNX."""
    model, neighbors = _separate_neighbors(model)
    outputs = [output.name for output in model.graph.output]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "network.onnx"
        onnx.save(model, source)
        param = Path(folder) / "ncnn.param"
        # Without fp16=0 pnnx writes weights in half precision.
        arguments = [f"inputshape=[1,3,{crop},{crop}]f32", "fp16=0", f"ncnnparam={param}"]
        _run_pnnx([str(source), *arguments, f"ncnnbin={weights.resolve()}"], Path(folder))
        if not param.is_file() or not weights.is_file():
            raise ExportError("pnnx wrote no model for ncnn. Use another version of pnnx.")
        layers = read_layers(param)
    unsupported = sorted({layer.type for layer in layers if not layer.type.isalnum()})
    if unsupported:
        raise ExportError(
            f"pnnx has no layers of ncnn for {', '.join(unsupported)}. Use another runtime."
        )
    names = {"in0": PIXELS, **{f"out{number}": name for number, name in enumerate(outputs)}}
    layers = [_rename(layer, names) for layer in layers]
    return layers + (score_layers(neighbors) if neighbors else [])


def _run_pnnx(arguments: Sequence[str], folder: Path) -> None:
    try:
        result = subprocess.run(
            [pnnx.EXEC_PATH, *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as cause:
        raise ExportError(f"pnnx did not finish: {cause}") from cause
    if result.returncode != 0:
        lines = (result.stderr.strip() or result.stdout.strip() or "no message").splitlines()
        raise ExportError(
            f"pnnx cannot convert the network (exit status {result.returncode}): {lines[-1][:300]}"
        )


def _rename(layer: NcnnLayer, names: Mapping[str, str]) -> NcnnLayer:
    return replace(
        layer,
        bottoms=tuple(names.get(name, name) for name in layer.bottoms),
        tops=tuple(names.get(name, name) for name in layer.tops),
    )


def _without_score(model: onnx.ModelProto) -> onnx.ModelProto:
    names = [output.name for output in model.graph.output if output.name != UNKNOWN_SCORE]
    extracted: onnx.ModelProto = onnx.utils.Extractor(model).extract_model([PIXELS], names)
    return extracted


def _separate_neighbors(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Take the mean distance to the nearest neighbors out of the score, as pnnx fails on TopK.

    Returns:
        A copy whose outputs are _SCORE_OF_THE_REST and _NEARNESS instead of the score, and the number
        of neighbors; the model and 0 if its score has no neighbors.
    """
    if not any(node.op_type == "TopK" for node in model.graph.node):
        return model, 0
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    top_k = next(node for node in graph.node if node.op_type == "TopK")
    mean = next(node for node in graph.node if top_k.output[0] in node.input)
    distance = next(node for node in graph.node if mean.output[0] in node.input)
    if (mean.op_type, distance.op_type) != ("ReduceMean", "Add"):
        raise ExportError("the score has another form than edgetl's.")
    residual = next(name for name in distance.input if name != mean.output[0])
    names = {distance.output[0]: residual, UNKNOWN_SCORE: _SCORE_OF_THE_REST}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for node in (top_k, mean, distance):
        graph.node.remove(node)
    graph.node.append(helper.make_node("Neg", [top_k.input[0]], [_NEARNESS]))
    for output in graph.output:
        output.name = names.get(output.name, output.name)
    shape: list[str | int | None] = ["batch", None]
    graph.output.append(helper.make_tensor_value_info(_NEARNESS, TensorProto.FLOAT, shape))
    count = next(value for value in graph.initializer if value.name == top_k.input[1])
    return copy, int(numpy_helper.to_array(count).item())


def score_layers(neighbors: int) -> list[NcnnLayer]:
    """Return the layers that compute `unknown_score`: the rest plus the mean smallest distance.

    ncnn's packages have no layer for the largest values of an array. The largest is taken and moved
    far away as often as there are neighbors. Equal values leave together, which changes the score
    only if training images have exactly the same distance.
    """
    layers: list[NcnnLayer] = []

    def add(
        kind: str, bottoms: Sequence[str], tops: Sequence[str], parameters: dict[int, str]
    ) -> None:
        name = f"unknown_layer_{len(layers)}"
        layers.append(NcnnLayer(kind, name, tuple(bottoms), tuple(tops), parameters))

    values, nearest = _NEARNESS, [f"unknown_largest_{step}" for step in range(neighbors)]
    for step, largest in enumerate(nearest[:-1]):
        copies = [f"{values}_{name}" for name in ("reduced", "compared", "moved")]
        add("Split", [values], copies, {})
        add("Reduction", copies[:1], [f"{largest}_value"], _MAXIMUM)
        add("Split", [f"{largest}_value"], [largest, f"{largest}_compared"], {})
        difference, mask = f"{largest}_difference", f"{largest}_mask"
        add("BinaryOp", [copies[1], f"{largest}_compared"], [difference], _SUBTRACT)
        add("Threshold", [difference], [mask], {0: _SMALLEST_DIFFERENCE})
        values = f"unknown_values_{step}"
        add("Eltwise", [copies[2], mask], [values], _weighted_sum([1.0, -_FAR_AWAY]))
    add("Reduction", [values], nearest[-1:], _MAXIMUM)
    factors = [1.0, *[-1 / neighbors] * neighbors]
    add("Eltwise", [_SCORE_OF_THE_REST, *nearest], [UNKNOWN_SCORE], _weighted_sum(factors))
    return layers


def _weighted_sum(factors: Sequence[float]) -> dict[int, str]:
    """Return the parameters of `Eltwise`: operation sum, and the factors as an array."""
    return {0: "1", -23301: ",".join([str(len(factors)), *map(repr, factors)])}
