"""Read an ONNX file's metadata and external data references without the onnx package.

Devices do not have that package. The file is parsed field by field in protobuf's wire format, with
the field numbers of onnx.proto, which never change.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ProtoField = tuple[int, int, int]
"""(number, start, end) of a field's value; for an integer both positions are the value itself."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MODEL_GRAPH, _MODEL_METADATA, _MODEL_FUNCTIONS = 7, 14, 25
# GraphProto: node, initializer, sparse_initializer. NodeProto: attribute.
# FunctionProto: node, attribute_proto.
# AttributeProto: t, tensors, g, graphs, sparse_tensor, sparse_tensors.
# SparseTensorProto: values, indices.
_NESTED_FIELDS: Mapping[str, Mapping[int, str]] = {
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "function": {7: "node", 11: "attribute"},
    "attribute": {5: "tensor", 10: "tensor", 6: "graph", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_DATA_LOCATION, _EXTERNAL_LOCATION = 14, 1
"""TensorProto.data_location, and its value for another file."""
_MAX_DEPTH = 64


class OnnxFileError(ValueError):
    """The bytes are not an ONNX model."""


@dataclass(frozen=True)
class OnnxFile:
    """Metadata of an ONNX file, with the presence of external data."""

    metadata: dict[str, str]
    """ModelProto.metadata_props."""
    has_external_data: bool
    """Whether a tensor's values are in another file."""


def read_onnx_file(path: Path) -> OnnxFile:
    """Read the file at `path` without its tensors' values.

    Raises:
        OSError: the file cannot be read.
        OnnxFileError: the file is empty, truncated or not a protobuf message.
    """
    with path.open("rb") as stream:
        try:
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as cause:
            raise OnnxFileError("the file is empty") from cause
        with content:
            return _OnnxReader(content).read_model()


class _OnnxReader:
    """Parser for the messages of onnx.proto that may contain a TensorProto."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content

    def read_model(self) -> OnnxFile:
        metadata: dict[str, str] = {}
        has_external_data = False
        for number, start, end in self._iter_fields(0, len(self._content)):
            if number == _MODEL_METADATA:
                entry = {
                    field: self._content[value_start:value_end]
                    for field, value_start, value_end in self._iter_fields(start, end)
                }
                key = self._decode_text(entry.get(1, b""))
                metadata[key] = self._decode_text(entry.get(2, b""))
            elif number in (_MODEL_GRAPH, _MODEL_FUNCTIONS):
                kind = "graph" if number == _MODEL_GRAPH else "function"
                # Called first, so that a broken graph is always reported.
                has_external_data = (
                    self._has_external_data(kind, start, end, 0) or has_external_data
                )
        return OnnxFile(metadata, has_external_data)

    def _has_external_data(self, kind: str, start: int, end: int, depth: int) -> bool:
        if depth > _MAX_DEPTH:
            raise OnnxFileError("its graphs are nested too deeply")
        if kind == "tensor":
            return any(
                number == _DATA_LOCATION and value == _EXTERNAL_LOCATION
                for number, value, _ in self._iter_fields(start, end)
            )
        nested_kinds = _NESTED_FIELDS[kind]
        return any(
            self._has_external_data(nested_kinds[number], value_start, value_end, depth + 1)
            for number, value_start, value_end in self._iter_fields(start, end)
            if number in nested_kinds
        )

    def _iter_fields(self, position: int, end: int) -> Iterator[ProtoField]:
        while position < end:
            tag, position = self._read_varint(position, end)
            number, kind = tag >> 3, tag & 7
            if kind == _VARINT:
                value, position = self._read_varint(position, end)
                yield number, value, value
                continue
            if kind == _BYTES:
                length, position = self._read_varint(position, end)
            elif kind in (_FIXED32, _FIXED64):
                length = 4 if kind == _FIXED32 else 8
            else:
                raise OnnxFileError("it is not a protobuf message")
            if position + length > end:
                raise OnnxFileError("it is truncated")
            yield number, position, position + length
            position += length

    def _read_varint(self, position: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if position >= end:
                raise OnnxFileError("it is truncated")
            byte = self._content[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
        raise OnnxFileError("it is not a protobuf message")

    @staticmethod
    def _decode_text(content: bytes) -> str:
        try:
            return content.decode()
        except UnicodeDecodeError as cause:
            raise OnnxFileError("its metadata is not UTF-8") from cause
