"""Calibration: activation statistics of the float network, and quantization ranges from them."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from functools import cached_property
from typing import get_args

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto
from onnxruntime.quantization import CalibrationMethod, TensorsData
from onnxruntime.quantization.calibrate import HistogramCollector

from edgetl.core.artifacts.bundle import CalibrationMethodName
from edgetl.device.runtime.session import create_session
from edgetl.export.graph.assemble import with_outputs
from edgetl.export.graph.preprocessing import PIXELS
from edgetl.export.quantize.images import CroppedImages

CALIBRATION_METHODS: tuple[CalibrationMethodName, ...] = get_args(CalibrationMethodName)
Range = tuple[NDArray[np.float32], NDArray[np.float32]]

_PERCENTILE = 99.99
_BINS, _QUANTIZED_BINS = 512, 128
_SAMPLING_STRIDES, _MAX_UNSAMPLED_VALUES = (13, 11), 50_000
"""Strides for sampling large batches into the histograms.

A stride must not divide the width, otherwise only some columns are sampled.
"""
_BATCH = 4


@dataclass
class ActivationStats:
    """Running statistics of one value of the graph."""

    low: float = np.inf
    high: float = -np.inf
    channel_sums: NDArray[np.float64] | None = None
    """Sum per channel over images and positions, [channels]."""
    count: int = 0
    """Number of values per channel in `channel_sums`."""

    @property
    def channel_means(self) -> NDArray[np.float64]:
        """Mean per channel, [channels]."""
        assert self.channel_sums is not None
        return self.channel_sums / max(1, self.count)

    def add(self, values: NDArray[np.float32]) -> None:
        """Add the values of a batch, [batch, channels, ...], or a constant without channels."""
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        axes = tuple(axis for axis in range(values.ndim) if axis != 1)
        sums = values.sum(axis=axes).astype(np.float64)
        self.channel_sums = sums if self.channel_sums is None else self.channel_sums + sums
        self.count += values.size // (values.shape[1] if values.ndim > 1 else 1)

    @property
    def magnitude(self) -> float:
        """Largest absolute value."""
        return max(-self.low, self.high)


class Calibration:
    """Statistics of every float value inside a network."""

    def __init__(self, network: onnx.ModelProto, images: CroppedImages) -> None:
        """Run the network on the images.

        Args:
            network: `pixels` -> `logits`, with the types of inner values (ONNX shape inference).
            images: calibration images.
        """
        self._names = _float_values(network)
        self.activation_stats: dict[str, ActivationStats] = {
            name: ActivationStats() for name in self._names
        }
        # In "entropy" mode the collector keeps histograms around zero, which also give percentiles.
        self._histograms = HistogramCollector(
            "entropy", False, _BINS, _QUANTIZED_BINS, _PERCENTILE, None
        )
        model = with_outputs(network, [name for name in self._names if name != PIXELS])
        session = create_session(model.SerializeToString())
        output_names = [output.name for output in session.get_outputs()]
        for batch in images.batches(_BATCH):
            outputs = zip(output_names, session.run(output_names, {PIXELS: batch}), strict=True)
            values = {PIXELS: batch, **dict(outputs)}
            self._add({name: values[name] for name in self._names})

    def _add(self, values: dict[str, NDArray[np.float32]]) -> None:
        for name, value in values.items():
            self.activation_stats[name].add(value)
        with contextlib.redirect_stdout(io.StringIO()):
            self._histograms.collect(
                {name: _sample_values(value) for name, value in values.items()}
            )

    def ranges(self, method: CalibrationMethodName) -> TensorsData:
        """Return the range of every value, in the format of onnxruntime's quantizer."""
        ranges: dict[str, Range] = getattr(self, f"_{method}")
        return TensorsData(CalibrationMethod.MinMax, dict(ranges))

    @property
    def largest_activation(self) -> tuple[str, float]:
        """Name and magnitude of the value with the largest magnitude."""
        name = max(self._names, key=lambda name: self.activation_stats[name].magnitude)
        return name, self.activation_stats[name].magnitude

    @cached_property
    def _minmax(self) -> dict[str, Range]:
        return {
            name: (np.float32(stats.low), np.float32(stats.high))  # type: ignore[misc]
            for name, stats in self.activation_stats.items()
        }

    @cached_property
    def _entropy(self) -> dict[str, Range]:
        thresholds = {}
        for name, (counts, edges, *bounds) in self._histograms.histogram_dict.items():
            # Merge pairs of bins, because the search is quadratic in the number of bins.
            while len(counts) > _BINS // 2 and len(counts) % 2 == 0:
                counts = counts[0::2] + counts[1::2]
                edges = edges[0::2]
            thresholds[name] = self._histograms.get_entropy_threshold(
                (counts, edges, *bounds), _QUANTIZED_BINS
            )
        return self._clip_to_minmax(thresholds)

    @cached_property
    def _percentile(self) -> dict[str, Range]:
        with contextlib.redirect_stdout(io.StringIO()):
            return self._clip_to_minmax(self._histograms.compute_percentile())

    def _clip_to_minmax(
        self, thresholds: dict[str, tuple[NDArray[np.float32], ...]]
    ) -> dict[str, Range]:
        # Thresholds are edges of bins, which may lie outside the observed range.
        return {
            name: (
                np.maximum(np.float32(low), self._minmax[name][0]),
                np.minimum(np.float32(high), self._minmax[name][1]),
            )
            for name, (low, high, *_) in thresholds.items()
        }


def _sample_values(values: NDArray[np.float32]) -> NDArray[np.float32]:
    flat = values.ravel()
    if flat.size < _MAX_UNSAMPLED_VALUES:
        return flat
    width = values.shape[-1]
    fallback = _SAMPLING_STRIDES[-1]
    return flat[:: next((stride for stride in _SAMPLING_STRIDES if width % stride), fallback)]


def _float_values(network: onnx.ModelProto) -> list[str]:
    floats = {
        value.name
        for value in (*network.graph.value_info, *network.graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    return [
        PIXELS,
        *(name for node in network.graph.node for name in node.output if name in floats),
    ]
