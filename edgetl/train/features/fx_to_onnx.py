"""Converter from torch.fx to ONNX, operator by operator: 0.1 s where PyTorch's exporter takes 10 s.

Covers the operators of convolutional networks. Frozen blocks run only once per image, so their
conversion has to pay off within one run; bundles are exported with PyTorch's exporter.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torchvision.ops import StochasticDepth, stochastic_depth

from edgetl.core.errors import ExportError

_OPSET = 18


def convert_fx_to_onnx(
    subgraph: fx.GraphModule, example: Sequence[Tensor], names: Sequence[str]
) -> onnx.ModelProto:
    """Convert a float32 subgraph (values, ...) -> (values, ...) to ONNX; axis 0 is the batch.

    Args:
        subgraph: in evaluation mode, traced down to PyTorch's modules.
        example: inputs of two rows or more; only their shapes matter.
        names: names of the inputs.

    Raises:
        ExportError: an operator is not supported.
    """
    with torch.no_grad():
        ShapeProp(subgraph).propagate(*example)
    return _Writer(subgraph, names).build_model(len(example[0]))


class _Writer:
    def __init__(self, subgraph: fx.GraphModule, names: Sequence[str]) -> None:
        self._graph_module = subgraph
        self._names = list(names)
        self._values: dict[fx.Node, Any] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: list[onnx.TensorProto] = []

    def build_model(self, rows: int) -> onnx.ModelProto:
        inputs: list[onnx.ValueInfoProto] = []
        for node in self._graph_module.graph.nodes:
            if node.op == "placeholder":
                self._values[node] = self._names[len(inputs)]
                inputs.append(_make_value_info(self._names[len(inputs)], node))
            elif node.op == "output":
                results = node.args[0] if isinstance(node.args[0], tuple) else (node.args[0],)
            elif _has_tensor_value(node):
                if any(shape[:1] != (rows,) for shape in _shapes(node)):
                    raise ExportError(f"{node.name}: the first axis is not the batch.")
                self._values[node] = self._write_node(node)
        # A value may be returned twice, and an input unchanged, but outputs need distinct names.
        outputs = [self._add_node("Identity", [self._values[node]]) for node in results]
        graph = helper.make_graph(
            self._nodes,
            "piece",
            inputs,
            [_make_value_info(name, node) for name, node in zip(outputs, results, strict=True)],
            self._tensors,
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10
        )

    def _write_node(self, node: fx.Node) -> Any:
        if node.op == "call_module":
            return self._write_module(node, self._graph_module.get_submodule(str(node.target)))
        if node.op == "call_function" and node.target is operator.getitem:
            parts = self._values.get(_argument(node, 0))
            if not isinstance(parts, tuple) or not isinstance(_argument(node, 1), int):
                raise ExportError(f"{node.name}: indexing a tensor is not supported.")
            return parts[_argument(node, 1)]
        write = _FUNCTIONS.get(node.target) if node.op != "get_attr" else None
        if write is None:
            raise ExportError(f"{node.op} {node.target} is not supported.")
        return write(self, node)

    def _write_module(self, node: fx.Node, module: nn.Module) -> str:
        write = _MODULES.get(type(module))
        if write is None:
            raise ExportError(f"{type(module).__name__} is not supported.")
        return str(write(self, node, module))

    def input(self, node: fx.Node) -> str:
        return str(self._values[_argument(node, 0)])

    def functional(self, node: fx.Node, module: nn.Module) -> str:
        return self._write_module(node, module)

    def binary(self, node: fx.Node, operator_type: str) -> str:
        if node.kwargs or len(node.all_input_nodes) != len(set(node.args)):
            raise ExportError(f"{node.name}: both operands must be tensors.")
        return self._add_node(
            operator_type, [self._values[_argument(node, index)] for index in (0, 1)]
        )

    def concat(self, node: fx.Node) -> str:
        return self._add_node(
            "Concat",
            [self._values[value] for value in _argument(node, 0)],
            axis=_argument(node, 1, "dim", 0),
        )

    def split(self, node: fx.Node) -> tuple[str, ...]:
        axis = _argument(node, 2, "dim", 0)
        sizes = [shape[axis] for shape in _shapes(node)]
        names = [f"{node.name}_{index}" for index in range(len(sizes))]
        self._nodes.append(
            helper.make_node(
                "Split",
                [self.input(node), self._add_initializer(np.array(sizes))],
                names,
                axis=axis,
            )
        )
        return tuple(names)

    def reshape(self, node: fx.Node) -> str:
        # 0 copies the batch size from the input.
        return self._add_node(
            "Reshape",
            [self.input(node), self._add_initializer(np.array([0, *_shapes(node)[0][1:]]))],
        )

    def transpose(self, node: fx.Node) -> str:
        order = list(range(len(_shapes(node)[0])))
        first, second = _argument(node, 1), _argument(node, 2)
        order[first], order[second] = order[second], order[first]
        return self._add_node("Transpose", [self.input(node)], perm=order)

    def mean(self, node: fx.Node) -> str:
        if not node.kwargs.keys() <= {"keepdim"} or len(node.args) != 2:
            raise ExportError(f"{node.name}: this kind of averaging is not supported.")
        return self._add_node(
            "ReduceMean",
            [self.input(node), self._add_initializer(np.array(node.args[1]))],
            keepdims=int(bool(node.kwargs.get("keepdim"))),
        )

    def convolution(self, node: fx.Node, module: nn.Conv2d) -> str:
        if module.padding_mode != "zeros" or isinstance(module.padding, str):
            raise ExportError(f"{node.name}: this kind of padding is not supported.")
        return self._add_node(
            "Conv",
            [self.input(node), *self._parameters(module.weight, module.bias)],
            kernel_shape=module.kernel_size,
            strides=module.stride,
            pads=(*module.padding, *module.padding),
            dilations=module.dilation,
            group=module.groups,
        )

    def zero_pad(self, node: fx.Node, module: nn.ZeroPad2d) -> str:
        # ONNX Runtime joins it with the convolution that follows.
        left, right, top, bottom = module.padding
        pads = np.array([0, 0, top, left, 0, 0, bottom, right])
        return self._add_node("Pad", [self.input(node), self._add_initializer(pads)])

    def linear(self, node: fx.Node, module: nn.Linear) -> str:
        if len(_shapes(node)[0]) != 2:
            raise ExportError(f"{node.name}: a linear layer must have a two-dimensional input.")
        return self._add_node(
            "Gemm", [self.input(node), *self._parameters(module.weight, module.bias)], transB=1
        )

    def batch_norm(self, node: fx.Node, module: nn.BatchNorm2d) -> str:
        parameters = self._parameters(
            module.weight, module.bias, module.running_mean, module.running_var
        )
        return self._add_node(
            "BatchNormalization", [self.input(node), *parameters], epsilon=module.eps
        )

    def pool(
        self,
        node: fx.Node,
        module: nn.MaxPool2d | nn.AvgPool2d,
        operator_type: str,
        **attributes: Any,
    ) -> str:
        if getattr(module, "divisor_override", None):
            raise ExportError(f"{node.name}: this kind of averaging is not supported.")
        kernel, stride, padding = (
            _pair(value) for value in (module.kernel_size, module.stride, module.padding)
        )
        return self._add_node(
            operator_type,
            [self.input(node)],
            kernel_shape=kernel,
            strides=stride,
            pads=(*padding, *padding),
            ceil_mode=int(module.ceil_mode),
            **attributes,
        )

    def adaptive_pool(self, node: fx.Node, module: nn.AdaptiveAvgPool2d) -> str:
        input_size = _shapes(node.args[0])[0][2:]
        output_size = _shapes(node)[0][2:]
        if input_size == output_size:
            return self.input(node)
        if output_size != (1, 1):
            raise ExportError(
                f"{node.name}: adaptive pooling from {input_size} to {output_size} is not supported."
            )
        return self._add_node("GlobalAveragePool", [self.input(node)])

    def silu(self, node: fx.Node) -> str:
        return self._add_node(
            "Mul", [self.input(node), self._add_node("Sigmoid", [self.input(node)])]
        )

    def clip(self, node: fx.Node, low: float, high: float) -> str:
        return self._add_node(
            "Clip",
            [
                self.input(node),
                *(self._add_initializer(np.array(bound, np.float32)) for bound in (low, high)),
            ],
        )

    def unary(self, node: fx.Node, operator_type: str, **attributes: float) -> str:
        return self._add_node(operator_type, [self.input(node)], **attributes)

    def _parameters(self, *values: Tensor | None) -> list[str]:
        return [
            self._add_initializer(value.detach().float().contiguous().cpu().numpy())
            if value is not None
            else ""
            for value in values
        ]

    def _add_initializer(self, value: np.ndarray[Any, Any]) -> str:
        name = f"tensor{len(self._tensors)}"
        self._tensors.append(numpy_helper.from_array(value, name))
        return name

    def _add_node(self, operator_type: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"value_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator_type, list(inputs), [name], **attributes))
        return name


def _argument(node: fx.Node, index: int, name: str = "", default: Any = None) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def _has_tensor_value(node: fx.Node) -> bool:
    """Return whether the node's value is one or several tensors, rather than a size."""
    return "tensor_meta" in node.meta


def _shapes(node: Any) -> list[tuple[int, ...]]:
    meta = node.meta["tensor_meta"]
    tensors = [meta] if hasattr(meta, "shape") else meta
    return [tuple(tensor.shape) for tensor in tensors]


def _make_value_info(name: str, node: fx.Node) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *_shapes(node)[0][1:]])


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


_NodeWriter = Callable[..., Any]
_PASS_THROUGH: _NodeWriter = lambda writer, node, *module: writer.input(node)  # noqa: E731
_MODULES: dict[type[nn.Module], _NodeWriter] = {
    nn.Conv2d: _Writer.convolution,
    nn.ZeroPad2d: _Writer.zero_pad,
    nn.Linear: _Writer.linear,
    nn.BatchNorm2d: _Writer.batch_norm,
    nn.MaxPool2d: lambda writer, node, module: writer.pool(
        node, module, "MaxPool", dilations=_pair(module.dilation)
    ),
    nn.AvgPool2d: lambda writer, node, module: writer.pool(
        node, module, "AveragePool", count_include_pad=int(module.count_include_pad)
    ),
    nn.AdaptiveAvgPool2d: _Writer.adaptive_pool,
    nn.ReLU: lambda writer, node, module: writer.unary(node, "Relu"),
    nn.ReLU6: lambda writer, node, module: writer.clip(node, 0, 6),
    nn.Sigmoid: lambda writer, node, module: writer.unary(node, "Sigmoid"),
    nn.Hardsigmoid: lambda writer, node, module: writer.unary(
        node, "HardSigmoid", alpha=1 / 6, beta=0.5
    ),
    nn.Hardswish: lambda writer, node, module: writer.unary(node, "HardSwish"),
    nn.SiLU: lambda writer, node, module: writer.silu(node),
    nn.Flatten: lambda writer, node, module: writer.reshape(node),
    nn.Dropout: _PASS_THROUGH,
    nn.Identity: _PASS_THROUGH,
    StochasticDepth: _PASS_THROUGH,
}
_FUNCTIONS: dict[Any, _NodeWriter] = {
    operator.add: lambda writer, node: writer.binary(node, "Add"),
    operator.iadd: lambda writer, node: writer.binary(node, "Add"),
    torch.add: lambda writer, node: writer.binary(node, "Add"),
    operator.mul: lambda writer, node: writer.binary(node, "Mul"),
    torch.mul: lambda writer, node: writer.binary(node, "Mul"),
    torch.cat: _Writer.concat,
    torch.flatten: _Writer.reshape,
    torch.transpose: _Writer.transpose,
    F.relu: lambda writer, node: writer.functional(node, nn.ReLU()),
    F.adaptive_avg_pool2d: lambda writer, node: writer.functional(node, nn.AdaptiveAvgPool2d(1)),
    F.avg_pool2d: lambda writer, node: writer.functional(
        node, nn.AvgPool2d(*node.args[1:], **node.kwargs)
    ),
    F.max_pool2d: lambda writer, node: writer.functional(
        node, nn.MaxPool2d(*node.args[1:], **node.kwargs)
    ),
    stochastic_depth: _PASS_THROUGH,
    "chunk": _Writer.split,
    "contiguous": _PASS_THROUGH,
    "flatten": _Writer.reshape,
    "mean": _Writer.mean,
    "reshape": _Writer.reshape,
    "sigmoid": lambda writer, node: writer.unary(node, "Sigmoid"),
    "view": _Writer.reshape,
}
