"""What flows through the float network on calibration images: once observed, ranges by any method follow from it."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto
from onnxruntime.quantization import CalibrationMethod, TensorsData
from onnxruntime.quantization.calibrate import HistogramCollector

from edgetl.device.runtime.session import create_session
from edgetl.export.graph.assemble import with_outputs
from edgetl.export.graph.preprocessing import PIXELS
from edgetl.export.quantize.images import CroppedImages

CalibrationMethodName = Literal["minmax", "entropy", "percentile"]
"""Ranges as observed; those that lose least information (Migacz, 2017); those that hold all but one value in ten thousand."""
CALIBRATION_METHODS: tuple[CalibrationMethodName, ...] = get_args(CalibrationMethodName)
Range = tuple[NDArray[np.float32], NDArray[np.float32]]

_PERCENTILE = 99.99
_BINS, _QUANTIZED_BINS = 512, 128
_SAMPLING_STRIDES, _MAX_UNSAMPLED_VALUES = (13, 11), 50_000
"""Every so manieth value of a large batch goes into the histograms; none that divides the width, or it would see a few columns only."""
_BATCH = 4


@dataclass
class ActivationStats:
    """One value of the graph."""

    low: float = np.inf
    high: float = -np.inf
    channel_sums: NDArray[np.float64] | None = None
    """Per channel, over images and places."""
    count: int = 0
    """Values per channel in `total`."""

    @property
    def channel_means(self) -> NDArray[np.float64]:
        """[channels]."""
        assert self.channel_sums is not None
        return self.channel_sums / max(1, self.count)

    def add(self, values: NDArray[np.float32]) -> None:
        """Values of a batch: [batch, channels, ...]."""
        self.low, self.high = (
            min(self.low, float(values.min())),
            max(self.high, float(values.max())),
        )
        axes = tuple(axis for axis in range(values.ndim) if axis != 1)
        total = values.sum(axis=axes).astype(np.float64)
        self.channel_sums = total if self.channel_sums is None else self.channel_sums + total
        self.count += values.size // values.shape[1]


class Calibration:
    """Statistics of every float value inside a network."""

    def __init__(self, network: onnx.ModelProto, images: CroppedImages) -> None:
        """Run the images through.

        Args:
            network: `pixels` -> `logits`, with the types of inner values (ONNX shape inference).
        """
        self._names = _float_values(network)
        self.activation_stats: dict[str, ActivationStats] = {
            name: ActivationStats() for name in self._names
        }
        # Only min-max and histograms around zero are needed: "entropy" collects those, which the percentiles are read from as well.
        self._histograms = HistogramCollector(
            "entropy", False, _BINS, _QUANTIZED_BINS, _PERCENTILE, None
        )
        session = create_session(
            with_outputs(
                network, [name for name in self._names if name != PIXELS]
            ).SerializeToString()
        )
        outputs = [output.name for output in session.get_outputs()]
        for batch in images.batches(_BATCH):
            values = {
                PIXELS: batch,
                **dict(zip(outputs, session.run(outputs, {PIXELS: batch}), strict=True)),
            }
            self._add({name: values[name] for name in self._names})

    def _add(self, values: dict[str, NDArray[np.float32]]) -> None:
        for name, value in values.items():
            self.activation_stats[name].add(value)
        with contextlib.redirect_stdout(io.StringIO()):
            self._histograms.collect(
                {name: _sample_values(value) for name, value in values.items()}
            )

    def ranges(self, method: CalibrationMethodName) -> TensorsData:
        """For onnxruntime's quantizer."""
        found: dict[str, Range] = getattr(self, f"_{method}")
        return TensorsData(CalibrationMethod.MinMax, dict(found))

    @property
    def largest_activation(self) -> tuple[str, float]:
        """The value of largest magnitude, with its name."""
        name = max(
            self._names,
            key=lambda name: max(
                -self.activation_stats[name].low, self.activation_stats[name].high
            ),
        )
        return name, max(-self.activation_stats[name].low, self.activation_stats[name].high)

    @cached_property
    def _minmax(self) -> dict[str, Range]:
        return {
            name: (np.float32(seen.low), np.float32(seen.high))  # type: ignore[misc]
            for name, seen in self.activation_stats.items()
        }

    @cached_property
    def _entropy(self) -> dict[str, Range]:
        found = {}
        for name, (counts, edges, *bounds) in self._histograms.histogram_dict.items():
            # In pairs: the search is quadratic in the number of bins.
            while len(counts) > _BINS // 2 and len(counts) % 2 == 0:
                counts, edges = counts[0::2] + counts[1::2], edges[0::2]
            found[name] = self._histograms.get_entropy_threshold(
                (counts, edges, *bounds), _QUANTIZED_BINS
            )
        return self._clip_to_minmax(found)

    @cached_property
    def _percentile(self) -> dict[str, Range]:
        with contextlib.redirect_stdout(io.StringIO()):
            return self._clip_to_minmax(self._histograms.compute_percentile())

    def _clip_to_minmax(
        self, found: dict[str, tuple[NDArray[np.float32], ...]]
    ) -> dict[str, Range]:
        # Thresholds are edges of bins: never wider than what was seen.
        return {
            name: (
                np.maximum(np.float32(low), self._minmax[name][0]),
                np.minimum(np.float32(high), self._minmax[name][1]),
            )
            for name, (low, high, *_) in found.items()
        }


def _sample_values(values: NDArray[np.float32]) -> NDArray[np.float32]:
    flat = values.ravel()
    return (
        flat
        if flat.size < _MAX_UNSAMPLED_VALUES
        else flat[
            :: next(
                stride
                for stride in _SAMPLING_STRIDES
                if values.shape[-1] % stride or stride == _SAMPLING_STRIDES[-1]
            )
        ]
    )


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
