"""Models of ncnn: the layers of a `.param` file with their weights from the `.bin` file.

Sources: ncnn's documentation, "param and model file structure" and "operation param weight table".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl.core.errors import ExportError

_MAGIC = "7767517"
"""First line of a `.param` file."""
_FLOAT_TAG, _INT8_TAG = bytes(4), (0x000D4B38).to_bytes(4, "little")
"""Marks in front of weights."""
_NUM_OUTPUT, _GROUP, _INT8_SCALE_TERM = 0, 7, 8
_SCALE_BY_CHANNEL, _SCALE_BY_GROUP, _INT8_OUTPUT = 2, 1, 100
"""Terms of the parameter `int8_scale_term`; the last is added for an int8 output."""
_BIAS_AND_SIZE = {"Convolution": (5, 6), "ConvolutionDepthWise": (5, 6), "InnerProduct": (1, 2)}
"""Numbers of the parameters `bias_term` and `weight_data_size`."""
_DYNAMIC_WEIGHT = 19
_INT8_LIMIT = 127


@dataclass(frozen=True)
class Int8Scales:
    """Factors of a layer from float values to int8."""

    weights: NDArray[np.float32]
    """By output channel, or by group of a convolution with groups."""
    bottom: float
    top: float | None = None
    """Factor of the output, which is int8 then; None for a float output."""


@dataclass(frozen=True)
class NcnnLayer:
    """A layer, its connections and its weights."""

    type: str
    name: str
    bottoms: tuple[str, ...]
    """Input values. A value has one consumer; `Split` copies values."""
    tops: tuple[str, ...]
    """Output values."""
    parameters: Mapping[int, str] = field(default_factory=dict)
    """Values as in the file, by number."""
    weights: NDArray[np.float32] | None = None
    """Weights of a convolution or matrix product; None if they are not read or do not exist."""
    data: bytes = b""
    """Bias of such a layer, and all constants of another, as in the file."""
    scales: Int8Scales | None = None

    def integer(self, number: int, default: int = 0) -> int:
        """Return an integer parameter."""
        return int(self.parameters.get(number, default))

    @property
    def is_depthwise(self) -> bool:
        """Whether this is a convolution with one input channel a group."""
        return (
            self.type == "ConvolutionDepthWise"
            and self.integer(_GROUP) == self.integer(_NUM_OUTPUT)
            and self.weights is not None
            and self.weights.size == self.integer(_GROUP) * self.kernel_size
        )

    @property
    def kernel_size(self) -> int:
        """Number of positions of a convolution's kernel."""
        return self.integer(1) * self.integer(11, self.integer(1))

    @property
    def weight_rows(self) -> NDArray[np.float32]:
        """Weights as rows that share a scale: output channels, or groups."""
        assert self.weights is not None
        is_grouped = self.type == "ConvolutionDepthWise"
        return self.weights.reshape(self.integer(_GROUP if is_grouped else _NUM_OUTPUT), -1)


def read_layers(param: Path) -> list[NcnnLayer]:
    """Read a `.param` file."""
    magic, _, *lines = param.read_text(encoding="utf-8").splitlines()
    if magic != _MAGIC:
        raise ExportError(f"{param.name} is not a model of ncnn: it starts with {magic[:20]!r}.")
    return [_parse_layer(line) for line in lines]


def _parse_layer(line: str) -> NcnnLayer:
    kind, name, inputs, outputs, *words = line.split()
    values, pairs = words[: int(inputs) + int(outputs)], words[int(inputs) + int(outputs) :]
    parameters = {}
    for pair in pairs:
        number, _, value = pair.partition("=")
        parameters[int(number)] = value
    return NcnnLayer(
        kind, name, tuple(values[: int(inputs)]), tuple(values[int(inputs) :]), parameters
    )


def read_weights(layers: Iterable[NcnnLayer], content: bytes) -> list[NcnnLayer]:
    """Add the weights of a `.bin` file in float32 to layers.

    Raises:
        ExportError: a layer has constants of a kind that is not read here.
    """
    complete, position = [], 0
    for layer in layers:
        weights = None
        if layer.type in _BIAS_AND_SIZE and not layer.integer(_DYNAMIC_WEIGHT):
            bias, size = _BIAS_AND_SIZE[layer.type]
            if content[position : position + 4] != _FLOAT_TAG:
                raise ExportError(f"The weights of ncnn's layer {layer.name} are not float32.")
            weights = np.frombuffer(content, np.float32, layer.integer(size), position + 4)
            position += 4 + weights.nbytes
            length = layer.integer(_NUM_OUTPUT) * layer.integer(bias)
        else:
            length = _CONSTANTS.get(layer.type, _no_constants)(layer)
        data = content[position : position + 4 * length]
        position += 4 * length
        complete.append(replace(layer, weights=weights, data=data))
    if position != len(content):
        kinds = ", ".join(sorted({layer.type for layer in layers} - _CONSTANTS.keys()))
        raise ExportError(
            f"edgetl cannot quantize this network for ncnn: the layers {kinds} have {position} bytes "
            f"of constants as far as it knows, but the file has {len(content)}."
        )
    return complete


def write_param(path: Path, layers: Sequence[NcnnLayer]) -> None:
    """Write a `.param` file."""
    values = {name for layer in layers for name in layer.tops}
    lines = [_MAGIC, f"{len(layers)} {len(values)}", *map(_format_layer, layers)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _format_layer(layer: NcnnLayer) -> str:
    parameters = dict(layer.parameters)
    if layer.scales is not None:
        is_grouped = layer.type == "ConvolutionDepthWise"
        term = _SCALE_BY_GROUP if is_grouped else _SCALE_BY_CHANNEL
        term += 0 if layer.scales.top is None else _INT8_OUTPUT
        parameters[_INT8_SCALE_TERM] = str(term)
    words = [
        *layer.bottoms,
        *layer.tops,
        *(f"{number}={value}" for number, value in parameters.items()),
    ]
    counts = f"{len(layer.bottoms)} {len(layer.tops)}"
    return f"{layer.type:24} {layer.name:24} {counts} {' '.join(words)}"


def write_weights(path: Path, layers: Iterable[NcnnLayer]) -> None:
    """Write a `.bin` file: layers with scales in int8, the others as they were read."""
    with path.open("wb") as file:
        for layer in layers:
            if layer.weights is None:
                file.write(layer.data)
            elif layer.scales is None:
                file.write(_FLOAT_TAG + layer.weights.tobytes() + layer.data)
            else:
                codes = quantize_weights(layer.weight_rows, layer.scales.weights).tobytes()
                padding = bytes(-len(codes) % 4)
                scales = [layer.scales.weights, np.float32(layer.scales.bottom)]
                if layer.scales.top is not None:
                    scales.append(np.float32(layer.scales.top))
                constants = b"".join(scale.tobytes() for scale in scales)
                file.write(_INT8_TAG + codes + padding + layer.data + constants)


def quantize_weights(rows: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.int8]:
    """Quantize [rows, n] with one factor a row, symmetrically."""
    codes = np.rint(rows * scales[:, None])
    limited: NDArray[np.int8] = np.clip(codes, -_INT8_LIMIT, _INT8_LIMIT).astype(np.int8)
    return limited


def weight_scales(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the factor of each row that maps its largest magnitude to 127; 0 for zeros."""
    largest = np.abs(rows).max(1)
    scales: NDArray[np.float32] = np.zeros_like(largest)
    np.divide(_INT8_LIMIT, largest, out=scales, where=largest > 0)
    return scales


def _no_constants(layer: NcnnLayer) -> int:
    return 0


def _memory_length(layer: NcnnLayer) -> int:
    sides = (layer.integer(number) for number in (0, 1, 11, 2))
    return int(np.prod([side for side in sides if side]))


_CONSTANTS: dict[str, Callable[[NcnnLayer], int]] = {
    "BatchNorm": lambda layer: 4 * layer.integer(0),
    "GroupNorm": lambda layer: 2 * layer.integer(1) * layer.integer(3, 1),
    "LayerNorm": lambda layer: 2 * layer.integer(0) * layer.integer(2, 1),
    "MemoryData": _memory_length,
    "PReLU": lambda layer: layer.integer(0),
    "Scale": lambda layer: layer.integer(0) * (1 + layer.integer(1)),
}
"""Numbers of float32 constants of layers that are not quantized."""
