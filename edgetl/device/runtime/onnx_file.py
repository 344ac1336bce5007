"""Read an ONNX file's metadata and remove its optional output, without the onnx package.

Devices do not have that package. The file is parsed field by field in protobuf's wire format, with
the field numbers of onnx.proto, which never change.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ACTIVATION_MAPS = "activation_maps"
"""Optional output of the graph, float32 [batch, classes, h, w].

The names of the nodes and constants that only it needs begin with it, and no others.
"""
ProtoField = tuple[int, int, int]
"""(number, start, end) of a field's value; for an integer both positions are the value itself."""
ProtoSpan = tuple[int, int, int, int, int]
"""(number, wire type, start of the field, start and end of its value)."""

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
_NAME_FIELDS: Mapping[int, int] = {1: 3, 5: 8, 12: 1}
"""Number of the field `name` in the messages of GraphProto: node, initializer, output."""


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
    with _open_reader(path) as reader:
        return reader.read_model()


def read_properties(path: Path) -> dict[str, str]:
    """Read ModelProto.metadata_props of the file at `path`, and nothing else.

    Raises:
        OSError: the file cannot be read.
        OnnxFileError: the file is empty, truncated or not a protobuf message.
    """
    with _open_reader(path) as reader:
        return reader.read_properties()


def read_without_activation_maps(path: Path) -> bytes | None:
    """Read the file at `path` without the output `activation_maps` and all that only it needs.

    What remains is the graph that the export writes without this output, byte by byte.

    Returns:
        None if the file does not have this output.

    Raises:
        OSError: the file cannot be read.
        OnnxFileError: the file is empty, truncated or not a protobuf message.
    """
    with _open_reader(path) as reader:
        return reader.read_without_activation_maps()


@contextmanager
def _open_reader(path: Path) -> Iterator[_OnnxReader]:
    with path.open("rb") as stream:
        try:
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as cause:
            raise OnnxFileError("the file is empty") from cause
        with content:
            yield _OnnxReader(content)


class _OnnxReader:
    """Parser for the messages of onnx.proto that may contain a TensorProto."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content

    def read_model(self) -> OnnxFile:
        metadata: dict[str, str] = {}
        has_external_data = False
        for number, start, end in self._iter_fields(0, len(self._content)):
            if number == _MODEL_METADATA:
                metadata |= self._read_metadata(start, end)
            elif number in (_MODEL_GRAPH, _MODEL_FUNCTIONS):
                kind = "graph" if number == _MODEL_GRAPH else "function"
                # Called first, so that a broken graph is always reported.
                has_external_data = (
                    self._has_external_data(kind, start, end, 0) or has_external_data
                )
        return OnnxFile(metadata, has_external_data)

    def read_properties(self) -> dict[str, str]:
        properties: dict[str, str] = {}
        for number, start, end in self._iter_fields(0, len(self._content)):
            if number == _MODEL_METADATA:
                properties |= self._read_metadata(start, end)
        return properties

    def read_without_activation_maps(self) -> bytes | None:
        if f"edgetl.{ACTIVATION_MAPS}" not in self.read_properties():
            return None
        spans = self._iter_spans(0, len(self._content))
        parts = []
        for number, kind, field_start, start, end in spans:
            if number == _MODEL_GRAPH:
                graph = b"".join(self._iter_graph_without_activation_maps(start, end))
                parts += [_encode_varint(number << 3 | kind), _encode_varint(len(graph)), graph]
            else:
                parts.append(self._content[field_start:end])
        return b"".join(parts)

    def _iter_graph_without_activation_maps(self, position: int, end: int) -> Iterator[bytes]:
        prefix = ACTIVATION_MAPS.encode()
        for number, _, field_start, value_start, value_end in self._iter_spans(position, end):
            name_field = _NAME_FIELDS.get(number)
            names = (
                self._content[name_start:name_end]
                for field, name_start, name_end in self._iter_fields(value_start, value_end)
                if field == name_field
            )
            if name_field is None or not next(names, b"").startswith(prefix):
                yield self._content[field_start:value_end]

    def _read_metadata(self, start: int, end: int) -> dict[str, str]:
        entry = {
            field: self._content[value_start:value_end]
            for field, value_start, value_end in self._iter_fields(start, end)
        }
        key, value = (self._decode_text(entry.get(field, b"")) for field in (1, 2))
        return {key: value}

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
        for number, kind, _, value_start, value_end in self._iter_spans(position, end):
            if kind == _VARINT:
                value, _ = self._read_varint(value_start, value_end)
                yield number, value, value
            else:
                yield number, value_start, value_end

    def _iter_spans(self, position: int, end: int) -> Iterator[ProtoSpan]:
        while position < end:
            field_start = position
            tag, position = self._read_varint(position, end)
            number, kind = tag >> 3, tag & 7
            value_start = position
            if kind == _VARINT:
                _, position = self._read_varint(position, end)
                yield number, kind, field_start, value_start, position
                continue
            if kind == _BYTES:
                length, value_start = self._read_varint(position, end)
            elif kind in (_FIXED32, _FIXED64):
                length = 4 if kind == _FIXED32 else 8
            else:
                raise OnnxFileError("it is not a protobuf message")
            position = value_start + length
            if position > end:
                raise OnnxFileError("it is truncated")
            yield number, kind, field_start, value_start, position

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


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
