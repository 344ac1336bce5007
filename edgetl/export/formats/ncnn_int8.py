"""int8 for ncnn: symmetric weights by output channel, symmetric activations by value.

ncnn's own tools for it, ncnn2table and ncnn2int8, come with no package. Its int8 files differ from the
float ones in the weights and in a few parameters, see `edgetl.export.formats.ncnn_model`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import ncnn
import numpy as np
from numpy.typing import NDArray

from edgetl.core.errors import ExportError
from edgetl.device.hardware.cpu import available_cores
from edgetl.device.runtime.sessions.ncnn_session import NcnnSession, load_net
from edgetl.device.runtime.sessions.session import SessionSource
from edgetl.export.formats.ncnn_model import (
    Int8Scales,
    NcnnLayer,
    read_weights,
    weight_scales,
    write_param,
    write_weights,
)
from edgetl.export.formats.task import ConversionTask, ConvertedFile
from edgetl.export.graph.preprocessing import PIXELS
from edgetl.export.graph.torch_export import LOGITS
from edgetl.export.quantize.images import CroppedImages
from edgetl.export.quantize.scoring import sqnr_db

RangeMethod = Literal["largest value", "smallest squared error"]
"""Choice of the largest magnitude that int8 represents."""
_BINS = 2048
_SAMPLES = 20_000
"""Values of an activation that an image adds to its histogram."""
_SMALLEST_CLIP, _CLIPS = 0.3, 71
_CALIBRATION_IMAGES, _SCORING_IMAGES = 128, 100
"""Upper limits: ncnn runs one image at a time, and each candidate is run."""
_INT8_LIMIT = 127


@dataclass
class MagnitudeHistogram:
    """Histogram of the magnitudes of a value, whose range doubles when needed."""

    largest: float = 0.0
    limit: float = 0.0
    """Upper end of the last bin."""
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS, np.int64))

    def add(self, values: NDArray[np.float32]) -> None:
        """Add values, of which the histogram takes evenly spaced ones."""
        flat = values.ravel()
        largest = float(max(flat.max(), -flat.min()))
        self.largest = max(self.largest, largest)
        if self.limit == 0.0:
            self.limit = largest
        while self.limit < largest:
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.concatenate([merged, np.zeros(_BINS // 2, np.int64)])
            self.limit *= 2
        # An odd step takes values of all columns.
        step = max(1, flat.size // _SAMPLES) | 1
        if self.limit > 0:
            sample = np.abs(flat[::step])
            self.counts += np.histogram(sample, _BINS, (0.0, self.limit))[0]

    def choose_range(self, method: RangeMethod) -> float:
        """Return the largest magnitude to represent; 1 if all values are 0."""
        if self.largest == 0.0:
            return 1.0
        if method == "largest value":
            return self.largest
        centers = (np.arange(_BINS) + 0.5) * (self.limit / _BINS)
        ranges = np.linspace(_SMALLEST_CLIP, 1.0, _CLIPS) * self.largest
        errors = []
        for limit in ranges:
            step = limit / _INT8_LIMIT
            rounded = np.minimum(np.rint(centers / step), _INT8_LIMIT) * step
            errors.append(float((self.counts * (rounded - centers) ** 2).sum()))
        return float(ranges[int(np.argmin(errors))])


@dataclass(frozen=True)
class _Int8Settings:
    """Settings of a quantization."""

    method: RangeMethod
    has_int8_depthwise: bool

    @property
    def description(self) -> str:
        """Settings for the manifest."""
        suffix = "" if self.has_int8_depthwise else ", depthwise convolutions in float32"
        return f"int8 weights by channel, activations by the {self.method}{suffix}"


def quantize_int8(
    task: ConversionTask, layers: Sequence[NcnnLayer], weights: bytes
) -> ConvertedFile:
    """Write the variant ncnn-int8 with the settings that keep the logits best.

    Depthwise convolutions have few weights and lose most in int8: ncnn has one scale for all
    channels of an activation.

    Args:
        task: has the images for calibration and for the choice.
        layers: layers of the float model.
        weights: content of its `.bin` file.

    Raises:
        ExportError: a layer's constants are unknown, there is nothing to quantize, or there are too
            few images.
    """
    layers = read_weights(layers, weights)
    quantizable = _find_quantizable(layers)
    if not quantizable:
        raise ExportError("the network has no convolutions and no matrix products.")
    task.notify("Calibrating int8 for ncnn", 0, 0)
    histograms = collect_histograms(
        task.paths("ncnn", "ncnn-fp32"),
        [layer.bottoms[0] for layer in quantizable],
        task.images.calibration.take(_CALIBRATION_IMAGES),
    )
    files = task.paths("ncnn", "ncnn-int8")
    quantized = {}
    for candidate in _candidates(quantizable):
        ranges = {
            name: histogram.choose_range(candidate.method) for name, histogram in histograms.items()
        }
        names = {
            layer.name
            for layer in quantizable
            if candidate.has_int8_depthwise or not layer.is_depthwise
        }
        quantized[candidate] = quantize_layers(layers, names, ranges)
    task.notify("Scoring int8 for ncnn", 0, 0)
    images = task.images.held_out.take(_SCORING_IMAGES)
    reference = task.held_out_logits[: len(images)]
    scores = {}
    for candidate, quantized_layers in quantized.items():
        _write(files, quantized_layers)
        scores[candidate] = sqnr_db(reference, _compute_logits(files, task.crop, images))
    best = max(scores, key=lambda candidate: scores[candidate])
    _write(files, quantized[best])
    return ConvertedFile("ncnn-int8", files, "int8", best.description)


def _candidates(quantizable: Sequence[NcnnLayer]) -> Iterator[_Int8Settings]:
    has_depthwise = any(layer.is_depthwise for layer in quantizable)
    for method in get_args(RangeMethod):
        yield _Int8Settings(method, True)
        if has_depthwise:
            yield _Int8Settings(method, False)


def _find_quantizable(layers: Sequence[NcnnLayer]) -> list[NcnnLayer]:
    """Return the layers with weights that the logits depend on; the unknown score stays in float."""
    needed = {LOGITS}
    quantizable = []
    for layer in reversed(layers):
        if needed.isdisjoint(layer.tops):
            continue
        needed.update(layer.bottoms)
        if layer.weights is not None:
            quantizable.append(layer)
    return quantizable[::-1]


def collect_histograms(
    files: Sequence[Path], names: Sequence[str], images: CroppedImages
) -> dict[str, MagnitudeHistogram]:
    """Run a model on images; return the magnitudes of the values `names`."""
    net = load_net(files, available_cores(), "fp32")
    histograms = {name: MagnitudeHistogram() for name in names}
    for batch in images.batches():
        for pixels in batch:
            with net.create_extractor() as extractor:
                extractor.set_light_mode(False)  # keeps inner values
                extractor.input(PIXELS, ncnn.Mat(pixels))
                for name, histogram in histograms.items():
                    _, value = extractor.extract(name)
                    histogram.add(np.asarray(value))
    return histograms


def quantize_layers(
    layers: Sequence[NcnnLayer], names: set[str], ranges: Mapping[str, float]
) -> list[NcnnLayer]:
    """Add scales to the layers `names`.

    A convolution whose result only int8 convolutions take writes int8; others write float32.

    Args:
        layers: all layers, with weights.
        names: layers to compute in int8.
        ranges: largest magnitude of each layer's input, by the name of the value.
    """
    consumers = {bottom: layer for layer in layers for bottom in layer.bottoms}

    def find_consumers(value: str) -> list[NcnnLayer | None]:
        """Return the layers behind `Split`; None stands for an output of the model."""
        consumer = consumers.get(value)
        if consumer is None or consumer.type != "Split":
            return [consumer]
        return [final for copy in consumer.tops for final in find_consumers(copy)]

    def output_scale(layer: NcnnLayer) -> float | None:
        ranges_behind = []
        for consumer in find_consumers(layer.tops[0]):
            if (
                consumer is None
                or consumer.name not in names
                or "InnerProduct" in (layer.type, consumer.type)
            ):
                return None
            ranges_behind.append(ranges[consumer.bottoms[0]])
        return _INT8_LIMIT / ranges_behind[0]

    return [
        replace(
            layer,
            scales=Int8Scales(
                weight_scales(layer.weight_rows),
                _INT8_LIMIT / ranges[layer.bottoms[0]],
                output_scale(layer),
            ),
        )
        if layer.name in names
        else layer
        for layer in layers
    ]


def _write(files: Sequence[Path], layers: Sequence[NcnnLayer]) -> None:
    param, weights = files
    write_param(param, layers)
    write_weights(weights, layers)


def _compute_logits(
    files: tuple[Path, ...], crop: int, images: CroppedImages
) -> NDArray[np.float32]:
    session = NcnnSession(SessionSource(files, available_cores(), crop, "int8"))
    return np.concatenate([session.run([LOGITS], batch)[0] for batch in images.batches()])
