"""Values of a network from which the unknown score is computed."""

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantFormat, quantize_dynamic, quantize_static
from onnxruntime.quantization.calibrate import CalibrationDataReader

from edgetl.export.graph.assemble import with_outputs
from edgetl.export.graph.features import INTERMEDIATE_FEATURES, append_intermediate_features

CHANNELS, SIDE = 4, 6


def _node(operator: str, inputs: Sequence[str], output: str) -> NodeProto:
    return helper.make_node(operator, inputs, [output], name=output)


def _residual_network(blocks: int) -> onnx.ModelProto:
    """Blocks of two convolutions and an addition, then a linear layer."""
    generator = np.random.default_rng(0)
    constants = {"head": generator.normal(0, 1, (CHANNELS, 3)).astype(np.float32)}
    nodes = []
    value = "pixels"
    for block in range(blocks):
        for layer in ("a", "b"):
            name = f"{layer}{block}"
            weight = generator.normal(0, 0.3, (CHANNELS, CHANNELS, 3, 3))
            constants[f"{name}_weight"] = weight.astype(np.float32)
            source = value if layer == "a" else f"a{block}_active"
            convolution = _node("Conv", [source, f"{name}_weight"], name)
            convolution.attribute.append(helper.make_attribute("pads", [1, 1, 1, 1]))
            nodes.append(convolution)
            if layer == "a":
                nodes.append(_node("Relu", [name], f"{name}_active"))
        nodes.append(_node("Add", [f"b{block}", value], f"block{block}"))
        value = f"block{block}"
    nodes += [
        _node("GlobalAveragePool", [value], "pooled"),
        _node("Flatten", ["pooled"], "flat"),
        _node("MatMul", ["flat", "head"], "logits"),
    ]
    return _model(nodes, constants)


def _model(nodes: Sequence[NodeProto], constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    shape = ["batch", CHANNELS, SIDE, SIDE]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _run(model: onnx.ModelProto, names: Sequence[str], pixels: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = with_outputs(model, list(names)).SerializeToString()
    return onnxruntime.InferenceSession(content, options).run(list(names), {"pixels": pixels})


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(1).random((2, CHANNELS, SIDE, SIDE), np.float32)


@pytest.mark.parametrize(("blocks", "block"), [(8, 6), (4, 2), (2, 0)])
def test_intermediate_features_are_those_of_a_late_block(
    blocks: int, block: int, pixels: np.ndarray
) -> None:
    model = _residual_network(blocks)
    assert append_intermediate_features(model)
    features, value = _run(model, [INTERMEDIATE_FEATURES, f"block{block}"], pixels)
    np.testing.assert_allclose(features, value.mean((2, 3)), rtol=1e-5)


def test_shapes_are_no_connection(pixels: np.ndarray) -> None:
    model = _residual_network(8)
    flatten = next(node for node in model.graph.node if node.op_type == "Flatten")
    # The shape of the input is computed first, and used last.
    flatten.CopyFrom(_node("Reshape", ["pooled", "sizes"], "flat"))
    shape = helper.make_node("Shape", ["pixels"], ["sizes"], start=0, end=2)
    nodes = [shape, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert append_intermediate_features(model)
    features, value = _run(model, [INTERMEDIATE_FEATURES, "block6"], pixels)
    np.testing.assert_allclose(features, value.mean((2, 3)), rtol=1e-5)


class _Pixels(CalibrationDataReader):
    def __init__(self, pixels: np.ndarray) -> None:
        self._batches = iter([{"pixels": pixels}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


@pytest.mark.parametrize("is_static", [True, False])
def test_quantized_networks_give_the_same_features(
    is_static: bool, pixels: np.ndarray, tmp_path
) -> None:
    model = _residual_network(8)
    source, target = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    onnx.save(model, source)
    if is_static:
        quantize_static(source, target, _Pixels(pixels), quant_format=QuantFormat.QDQ)
    else:
        quantize_dynamic(source, target)
    quantized = onnx.load(target)
    for network in (model, quantized):
        assert append_intermediate_features(network)
    (expected,) = _run(model, [INTERMEDIATE_FEATURES], pixels)
    (features,) = _run(quantized, [INTERMEDIATE_FEATURES], pixels)
    np.testing.assert_allclose(features, expected, atol=0.05 * np.abs(expected).max())


@pytest.mark.parametrize("skips_everything", [True, False])
def test_networks_without_such_a_value_are_unchanged(skips_everything: bool) -> None:
    """Either a connection passes all layers by, or there is a single convolution."""
    model = _residual_network(4 if skips_everything else 1)
    if skips_everything:
        pooled = next(node for node in model.graph.node if node.op_type == "GlobalAveragePool")
        model.graph.node.remove(pooled)
        end = _node("Add", ["block3", "pixels"], "end")
        pool = _node("GlobalAveragePool", ["end"], "pooled")
        rest = list(model.graph.node[-2:])
        del model.graph.node[-2:]
        model.graph.node.extend([end, pool, *rest])
    before = model.SerializeToString()
    assert not append_intermediate_features(model)
    assert model.SerializeToString() == before
