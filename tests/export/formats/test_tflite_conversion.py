"""Conversion to LiteRT against ONNX Runtime, operator by operator, in float32 and in int8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from edgetl.core.errors import ExportError
from edgetl.device.runtime.sessions.session import SessionSource

pytest.importorskip("ai_edge_litert")

from edgetl.device.runtime.sessions.litert_session import LiteRtSession
from edgetl.export.formats.tflite_conversion import convert_onnx

SIDE = 13
RANDOM = np.random.default_rng(0)


def weights(*shape: int) -> NDArray[np.float32]:
    return (RANDOM.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


@dataclass
class Network:
    """Nodes from `pixels` [batch, 3, SIDE, SIDE] to `logits`."""

    nodes: Sequence[NodeProto]
    constants: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def model(self) -> onnx.ModelProto:
        inputs = [helper.make_tensor_value_info("pixels", 1, ["batch", 3, SIDE, SIDE])]
        outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)]
        constants = [numpy_helper.from_array(array, name) for name, array in self.constants.items()]
        graph = helper.make_graph(list(self.nodes), "network", inputs, outputs, constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def node(operator: str, inputs: str, output: str = "logits", **attributes: Any) -> NodeProto:
    return helper.make_node(operator, inputs.split(), output.split(), **attributes)


def conv(*shape: int, **attributes: Any) -> Network:
    constants = {"w": weights(*shape), "b": weights(shape[0])}
    return Network([node("Conv", "pixels w b", **attributes)], constants)


def after_conv(
    *nodes: NodeProto, channels: int = 8, constants: Mapping[str, NDArray[Any]] | None = None
) -> Network:
    """A pointwise convolution to `x`, then `nodes`."""
    pointwise = {"w0": 3 * weights(channels, 3, 1, 1)}
    return Network([node("Conv", "pixels w0", "x"), *nodes], {**pointwise, **(constants or {})})


def pool(operator: str, **attributes: Any) -> Network:
    return after_conv(node(operator, "x", kernel_shape=[3, 3], **attributes))


def positive_pool(**attributes: Any) -> Network:
    return after_conv(
        node("Relu", "x", "y"), node("MaxPool", "y", kernel_shape=[3, 3], **attributes)
    )


AXES = {"space": np.array([2, 3], np.int64), "last": np.array([1], np.int64)}
SHUFFLE = after_conv(
    node("Shape", "x", "batch", start=0, end=1),
    node("Concat", "batch groups", "split", axis=0),
    node("Reshape", "x split", "grouped"),
    node("Transpose", "grouped", "swapped", perm=[0, 2, 1, 3, 4]),
    node("Concat", "batch joined", "merged", axis=0),
    node("Reshape", "swapped merged", "shuffled"),
    node("Conv", "shuffled w"),
    constants={
        "groups": np.array([2, 4, SIDE, SIDE], np.int64),
        "joined": np.array([8, SIDE, SIDE], np.int64),
        "w": weights(4, 8, 1, 1),
    },
)
SQUEEZE_EXCITATION = after_conv(
    node("GlobalAveragePool", "x", "mean"),
    node("Conv", "mean w1", "squeezed"),
    node("Relu", "squeezed", "active"),
    node("Conv", "active w2", "excited"),
    node("HardSigmoid", "excited", "gate", alpha=1 / 6, beta=0.5),
    node("Mul", "gate x"),
    constants={"w1": weights(4, 8, 1, 1), "w2": weights(8, 4, 1, 1)},
)
CHANNELS_LAST = after_conv(
    node("Transpose", "x", "last_axis", perm=[0, 2, 3, 1]),
    node("MatMul", "last_axis w", "product"),
    node("Add", "product b", "sum"),
    node("Transpose", "sum", perm=[0, 3, 1, 2]),
    constants={"w": weights(8, 5), "b": weights(5)},
)
GELU = after_conv(
    node("Div", "x root", "scaled"),
    node("Erf", "scaled", "erf"),
    node("Add", "erf one", "shifted"),
    node("Mul", "half shifted", "gate"),
    node("Mul", "x gate"),
    constants={
        "root": np.array(np.sqrt(2), np.float32),
        "one": np.array(1, np.float32),
        "half": np.array(0.5, np.float32),
    },
)
SCORE = after_conv(
    node("GlobalAveragePool", "x", "mean"),
    node("Flatten", "mean", "flat", axis=1),
    node("Cast", "flat", "features", to=TensorProto.FLOAT),
    node("ReduceL2", "features last", "norm", keepdims=1),
    node("Div", "features norm", "unit"),
    node("Cast", "codes", "bank", to=TensorProto.FLOAT),
    node("MatMul", "unit bank", "products"),
    node("TopK", "products count", "nearest indices", axis=1, largest=0, sorted=1),
    node("ReduceMean", "nearest last", "distance", keepdims=1),
    node("ReduceLogSumExp", "features last", "energy", keepdims=1),
    node("ReduceMax", "features last", "largest", keepdims=1),
    node("Sub", "distance energy", "difference"),
    node("Max", "difference largest", "score"),
    node("Squeeze", "score last"),
    constants={
        **AXES,
        "codes": RANDOM.integers(-127, 127, (8, 30)).astype(np.int8),
        "count": np.array([5], np.int64),
    },
)
NETWORKS = {
    "conv": conv(8, 3, 3, 3, pads=[1] * 4),
    "conv without padding": conv(8, 3, 3, 3),
    "conv with stride": conv(8, 3, 3, 3, pads=[1] * 4, strides=[2, 2]),
    "conv with uneven padding": conv(8, 3, 3, 3, pads=[0, 1, 2, 3], strides=[2, 3]),
    "conv with dilation": conv(8, 3, 3, 3, pads=[2] * 4, dilations=[2, 2]),
    "conv with upper padding": conv(8, 3, 3, 3, auto_pad="SAME_UPPER", strides=[2, 2]),
    "depthwise conv": conv(3, 1, 5, 5, pads=[2] * 4, group=3),
    "depthwise conv with multiplier": conv(6, 1, 3, 3, group=3),
    "grouped conv": after_conv(node("Conv", "x w", group=2), constants={"w": weights(6, 4, 3, 3)}),
    "relu6": after_conv(
        node("Clip", "x low high"),
        constants={"low": np.array(0, np.float32), "high": np.array(6, np.float32)},
    ),
    "clip": after_conv(
        node("Clip", "x low high"),
        constants={"low": np.array(-0.5, np.float32), "high": np.array(0.7, np.float32)},
    ),
    "hard swish": after_conv(
        node("HardSigmoid", "x", "gate", alpha=1 / 6, beta=0.5), node("Mul", "x gate")
    ),
    "hard sigmoid": after_conv(node("HardSigmoid", "x", alpha=0.25, beta=0.4)),
    "silu": after_conv(node("Sigmoid", "x", "gate"), node("Mul", "x gate")),
    "gelu": GELU,
    "layer norm": after_conv(
        node("Transpose", "x", "last_axis", perm=[0, 2, 3, 1]),
        node("LayerNormalization", "last_axis scale bias", "norm", axis=-1, epsilon=1e-3),
        node("Transpose", "norm", perm=[0, 3, 1, 2]),
        constants={"scale": weights(8), "bias": weights(8)},
    ),
    "batch norm": after_conv(
        node("BatchNormalization", "x scale bias mean variance"),
        constants={
            "scale": weights(8),
            "bias": weights(8),
            "mean": weights(8),
            "variance": np.abs(weights(8)) + 0.1,
        },
    ),
    "max pool": pool("MaxPool", strides=[2, 2], pads=[1] * 4),
    "max pool of positive values": positive_pool(strides=[2, 2], pads=[1] * 4),
    "max pool rounding up": pool("MaxPool", strides=[3, 3], ceil_mode=1),
    "average pool": pool("AveragePool", strides=[2, 2]),
    "average pool of the image": pool("AveragePool", pads=[1] * 4),
    "average pool with padding": pool("AveragePool", pads=[1] * 4, count_include_pad=1),
    "average pool with padding and stride": pool(
        "AveragePool", pads=[1] * 4, strides=[4, 4], count_include_pad=1
    ),
    "channel shuffle": SHUFFLE,
    "squeeze and excitation": SQUEEZE_EXCITATION,
    "flatten": after_conv(
        node("MaxPool", "x", "pooled", kernel_shape=[5, 5], strides=[4, 4]),
        node("Flatten", "pooled", "flat"),
        node("Gemm", "flat w b", transB=1),
        constants={"w": weights(7, 72), "b": weights(7)},
    ),
    "mean and product": after_conv(
        node("ReduceMean", "x space", "mean", keepdims=0),
        node("Gemm", "mean w b"),
        constants={**AXES, "w": weights(8, 7), "b": weights(7)},
    ),
    "split and concat": after_conv(
        node("Split", "x sizes", "a b", axis=1),
        node("Sub", "a one", "c"),
        node("Concat", "b c", axis=1),
        constants={
            "sizes": np.array([3, 5], np.int64),
            "one": RANDOM.standard_normal((3, 1, 1)).astype(np.float32),
        },
    ),
    "slice": after_conv(
        node("Slice", "x starts ends axes"),
        constants={
            "starts": np.array([2, -6], np.int64),
            "ends": np.array([6, 1000], np.int64),
            "axes": np.array([1, 3], np.int64),
        },
    ),
    "pad": after_conv(
        node("Pad", "x pads"), constants={"pads": np.array([0, 0, 1, 2, 0, 3, 0, 1], np.int64)}
    ),
    "channels last": CHANNELS_LAST,
    "softmax": after_conv(
        node("ReduceMean", "x space", "mean", keepdims=0), node("Softmax", "mean"), constants=AXES
    ),
    "score of unknown images": SCORE,
}


def reference(
    model: onnx.ModelProto,
    pixels: NDArray[np.float32],
    options: ort.SessionOptions | None = None,
) -> NDArray[np.float32]:
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(["logits"], {"pixels": pixels})[0])


def open_converted(path: Path) -> LiteRtSession:
    return LiteRtSession(SessionSource((path,), 1, SIDE))


def images(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((count, 3, SIDE, SIDE)).astype(np.float32)


@pytest.mark.parametrize("name", NETWORKS)
def test_operators_equal_those_of_onnx_runtime(name: str, tmp_path: Path) -> None:
    model = NETWORKS[name].model()
    convert_onnx(model, tmp_path / "network.tflite")
    session = open_converted(tmp_path / "network.tflite")
    assert session.output_names == ("logits",)
    for batch in (1, 3):
        expected = reference(model, images(batch))
        [logits] = session.run(["logits"], images(batch))
        assert logits.shape == expected.shape
        np.testing.assert_allclose(logits, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "operators"),
    [
        ("conv", ["CONV_2D"]),
        ("conv with stride", ["CONV_2D"]),
        ("conv with uneven padding", ["PAD", "CONV_2D"]),
        ("conv with upper padding", ["CONV_2D"]),
        ("relu6", ["CONV_2D"]),
        ("hard swish", ["CONV_2D", "HARD_SWISH"]),
        ("gelu", ["CONV_2D", "GELU"]),
        ("max pool", ["CONV_2D", "MAX_POOL_2D"]),
        ("channel shuffle", ["CONV_2D", "RESHAPE", "TRANSPOSE", "RESHAPE", "CONV_2D"]),
        ("channels last", ["CONV_2D", "FULLY_CONNECTED", "ADD"]),
    ],
)
def test_conversion_adds_no_operators(name: str, operators: list[str], tmp_path: Path) -> None:
    # Images as outputs get ONNX's order of axes.
    expected = [*operators, "TRANSPOSE"]
    assert convert_onnx(NETWORKS[name].model(), tmp_path / "network.tflite") == expected


def test_metadata_stays_in_the_file(tmp_path: Path) -> None:
    model = NETWORKS["conv"].model()
    helper.set_model_props(model, {"edgetl.labels": '["daisy", "rose"]'})
    convert_onnx(model, tmp_path / "network.tflite")
    content = (tmp_path / "network.tflite").read_bytes()
    assert b"edgetl.labels" in content
    assert b'["daisy", "rose"]' in content


def test_unknown_operators_are_refused(tmp_path: Path) -> None:
    model = after_conv(node("Erf", "x")).model()
    with pytest.raises(ExportError, match="no conversion of the operator Erf to LiteRT"):
        convert_onnx(model, tmp_path / "network.tflite")
    assert not list(tmp_path.iterdir())


def test_networks_that_move_the_batch_are_refused(tmp_path: Path) -> None:
    model = after_conv(node("Transpose", "x", perm=[1, 0, 2, 3])).model()
    with pytest.raises(ExportError, match="only if the batch stays in front"):
        convert_onnx(model, tmp_path / "network.tflite")


class Calibration(CalibrationDataReader):
    """Eight batches of images."""

    def __init__(self) -> None:
        self._batches = iter(images(8).reshape(8, 1, 3, SIDE, SIDE))

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"pixels": batch}


def quantize(network: Network, folder: Path, activations: QuantType, **options: Any) -> Path:
    source, target = folder / "float32.onnx", folder / "int8.onnx"
    onnx.save(network.model(), source)
    quantize_static(
        source,
        target,
        Calibration(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=activations,
        weight_type=QuantType.QInt8,
        **options,
    )
    return target


RESIDUAL = Network(
    [
        node("Conv", "pixels w1 b1", "a", pads=[1] * 4, strides=[2, 2], name="first"),
        node("Relu", "a", "b"),
        node("Conv", "b w2 b2", "c", group=16, pads=[1] * 4, name="depthwise"),
        node("Relu", "c", "d"),
        node("Conv", "d w3", "e", name="pointwise"),
        node("Add", "b e", "f", name="sum"),
        node("MaxPool", "f", "g", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
        node("Concat", "g g", "h", axis=1),
        node("GlobalAveragePool", "h", "i", name="mean"),
        node("Flatten", "i", "j"),
        node("Gemm", "j w4 b4", "logits", transB=1, name="product"),
    ],
    {
        "w1": 2 * weights(16, 3, 3, 3),
        "b1": weights(16),
        "w2": 2 * weights(16, 1, 3, 3),
        "b2": weights(16),
        "w3": weights(16, 16, 1, 1),
        "w4": 3 * weights(7, 32),
        "b4": weights(7),
    },
)


def assert_equal_up_to_one_step(logits: NDArray[np.float32], model: onnx.ModelProto) -> None:
    """Compare with ONNX Runtime, whose logits for images(4) are rounded to the same steps."""
    steps = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    # In float32 between the rounding: ONNX Runtime's int8 kernels overflow with 8-bit weights on
    # CPUs without VNNI.
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    difference = np.abs(logits - reference(model, images(4), options))
    assert difference.max() < 1.01 * float(steps["logits_scale"])
    assert (difference > 1e-4).mean() < 0.3


@pytest.mark.parametrize("activations", [QuantType.QInt8, QuantType.QUInt8])
def test_qdq_networks_are_computed_in_int8(activations: QuantType, tmp_path: Path) -> None:
    model = onnx.load(quantize(RESIDUAL, tmp_path, activations))
    operators = convert_onnx(model, tmp_path / "network.tflite")
    # The input, and the two inputs of Concat, which need its steps.
    assert operators.count("QUANTIZE") == 3
    assert operators.count("DEQUANTIZE") == 1
    session = open_converted(tmp_path / "network.tflite")
    [logits] = session.run(["logits"], images(4))
    assert_equal_up_to_one_step(logits, model)
    facts = session.describe()
    assert facts.precision == "int8"
    assert facts.options["XNNPACK"] == f"{len(operators)} of {len(operators)} operators"


def test_layers_left_in_float32_stay_so(tmp_path: Path) -> None:
    path = quantize(RESIDUAL, tmp_path, QuantType.QInt8, nodes_to_exclude=["depthwise", "sum"])
    model = onnx.load(path)
    convert_onnx(model, tmp_path / "network.tflite")
    session = open_converted(tmp_path / "network.tflite")
    [logits] = session.run(["logits"], images(4))
    assert_equal_up_to_one_step(logits, model)
    shares = session.describe().precision_shares
    assert 0 < shares["fp32"] < shares["int8"]


def test_hard_swish_of_several_operators_is_computed_in_int8(tmp_path: Path) -> None:
    swish = after_conv(
        node("Mul", "x slope", "scaled"),
        node("Add", "scaled offset", "shifted"),
        node("Clip", "shifted low high", "gate"),
        node("Mul", "x gate", "y"),
        node("GlobalAveragePool", "y", "mean"),
        node("Flatten", "mean", "flat"),
        node("Gemm", "flat w b", transB=1),
        constants={
            "slope": np.array(1 / 6, np.float32),
            "offset": np.array(0.5, np.float32),
            "low": np.array(0, np.float32),
            "high": np.array(1, np.float32),
            "w": 3 * weights(7, 8),
            "b": weights(7),
        },
    )
    model = onnx.load(quantize(swish, tmp_path, QuantType.QUInt8))
    operators = convert_onnx(model, tmp_path / "network.tflite")
    session = open_converted(tmp_path / "network.tflite")
    [logits] = session.run(["logits"], images(4))
    assert_equal_up_to_one_step(logits, model)
    assert operators[:4] == ["QUANTIZE", "CONV_2D", "MUL", "ADD"]
    assert "DEQUANTIZE" not in operators[:-1]
    assert "MAXIMUM" not in operators


def test_int8_files_are_smaller(tmp_path: Path) -> None:
    convert_onnx(RESIDUAL.model(), tmp_path / "float32.tflite")
    convert_onnx(onnx.load(quantize(RESIDUAL, tmp_path, QuantType.QInt8)), tmp_path / "int8.tflite")
    sizes = [(tmp_path / name).stat().st_size for name in ("float32.tflite", "int8.tflite")]
    assert sizes[1] < sizes[0]
