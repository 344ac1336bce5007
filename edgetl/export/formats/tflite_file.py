"""Writer of .tflite files: tensors, operators, metadata.

Sources: LiteRT's schema (schema.fbs), whose Python classes are part of ai-edge-litert, and its
quantization specification (int8, symmetric weights per channel).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from edgetl.core.files import atomic_path

SIGNATURE = "serving_default"
_FILE_IDENTIFIER = b"TFL3"
_SCHEMA_VERSION = 3
_ALIGNMENT = 16
_TENSOR_TYPES = {"float32": "FLOAT32", "int8": "INT8", "int32": "INT32", "int64": "INT64"}
_INT8_VERSIONS = {
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "FULLY_CONNECTED": 4,
    "QUANTIZE": 1,
    "RESHAPE": 1,
}
"""Versions of operators with int8 tensors, where it is not 2."""


@dataclass(frozen=True)
class Quantization:
    """Steps of an int8 or int32 tensor: real = scale * (stored - zero_point)."""

    scale: NDArray[np.float32]
    """One step, or one for each index of `axis`."""
    zero_point: int = 0
    axis: int = 0
    """0 for a single step; XNNPACK leaves tensors with another to LiteRT's slower kernels."""

    def equals(self, other: Quantization) -> bool:
        """Whether the same integers mean the same numbers."""
        return self.zero_point == other.zero_point and np.array_equal(self.scale, other.scale)


@dataclass
class TfliteModel:
    """A graph under construction. Tensors are named by their index."""

    tensors: list[Any] = field(default_factory=list)
    operators: list[Any] = field(default_factory=list)
    _buffers: list[Any] = field(default_factory=lambda: [schema.BufferT()])
    _codes: dict[tuple[str, int], int] = field(default_factory=dict)

    def add_tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: str = "float32",
        quantization: Quantization | None = None,
    ) -> int:
        """Add a tensor that an operator computes, or an input."""
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.hasRank = name, list(shape), True
        tensor.type = getattr(schema.TensorType, _TENSOR_TYPES[dtype])
        if quantization is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = quantization.scale.ravel()
            zero_points = np.full(quantization.scale.size, quantization.zero_point, np.int64)
            tensor.quantization.zeroPoint = zero_points
            tensor.quantization.quantizedDimension = quantization.axis
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def add_constant(
        self, name: str, value: NDArray[Any], quantization: Quantization | None = None
    ) -> int:
        """Add a tensor with a value."""
        index = self.add_tensor(name, value.shape, value.dtype.name, quantization)
        self.tensors[index].buffer = self._add_buffer(value.tobytes())
        return index

    def add_operator(
        self,
        operator: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: object | None = None,
    ) -> None:
        """Add an operator by its name in the schema, such as CONV_2D."""
        int8 = schema.TensorType.INT8
        uses_int8 = any(self.tensors[i].type == int8 for i in [*inputs, *outputs] if i >= 0)
        version = _INT8_VERSIONS.get(operator, 2) if uses_int8 else 1
        entry = schema.OperatorT()
        entry.opcodeIndex = self._codes.setdefault((operator, version), len(self._codes))
        entry.inputs, entry.outputs = list(inputs), list(outputs)
        if options is not None:
            kind = type(options).__name__.removesuffix("T")
            entry.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            entry.builtinOptions = options
        self.operators.append(entry)

    def operator_names(self) -> list[str]:
        """Names of the operators in order."""
        names = {index: name for (name, _), index in self._codes.items()}
        return [names[entry.opcodeIndex] for entry in self.operators]

    def write(
        self,
        path: Path,
        inputs: Mapping[str, int],
        outputs: Mapping[str, int],
        metadata: Mapping[str, str],
    ) -> None:
        """Write the file.

        Args:
            path: file to write.
            inputs: tensors by the names of the signature.
            outputs: tensors by the names of the signature.
            metadata: entries of the file's metadata.
        """
        graph = schema.SubGraphT()
        graph.tensors, graph.operators = self.tensors, self.operators
        graph.inputs, graph.outputs = list(inputs.values()), list(outputs.values())
        signature = schema.SignatureDefT()
        signature.signatureKey = SIGNATURE
        signature.inputs = [_map_tensor(name, index) for name, index in inputs.items()]
        signature.outputs = [_map_tensor(name, index) for name, index in outputs.items()]
        model = schema.ModelT()
        model.version, model.description = _SCHEMA_VERSION, "Exported by edgetl"
        model.operatorCodes = [_operator_code(*key) for key in self._codes]
        model.subgraphs, model.signatureDefs = [graph], [signature]
        model.metadata = []
        for name, text in metadata.items():
            entry = schema.MetadataT()
            entry.name, entry.buffer = name, self._add_buffer(text.encode())
            model.metadata.append(entry)
        model.buffers = self._buffers
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), _FILE_IDENTIFIER)
        with atomic_path(path) as temporary:
            temporary.write_bytes(builder.Output())

    def _add_buffer(self, content: bytes) -> int:
        self._buffers.append(_AlignedBuffer(content))
        return len(self._buffers) - 1


class _AlignedBuffer(schema.BufferT):  # type: ignore[misc]  # the schema's classes are untyped
    """A buffer at a multiple of 16 bytes, as the schema demands. The generated class ignores it."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self._content = content

    def Pack(self, builder: Any) -> int:  # noqa: N802 (called by the generated classes)
        size = len(self._content)
        builder.StartVector(1, size, _ALIGNMENT)
        builder.head -= size
        builder.Bytes[builder.head : builder.head + size] = self._content
        vector = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, vector)
        return int(schema.BufferEnd(builder))


def _map_tensor(name: str, index: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, index
    return entry


def _operator_code(operator: str, version: int) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, operator)
    # Readers of the time before 2020 know one byte.
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.version = version
    return code
