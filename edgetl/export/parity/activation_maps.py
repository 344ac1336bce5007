"""Proof of the output `activation_maps`: PyTorch's own classifier gives the same maps.

The reference does not use the exported graph. PyTorch's network runs with its last global average
pooling replaced by a function that returns the features of each location as a row of the batch;
the network's own code then computes the logits of every row.

The features of a smaller variant are noisy, so that its maps cannot be proven in this way. There
PyTorch's classifier gets the variant's own features, and only its weights may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx.utils
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from edgetl.core.artifacts.bundle import ActivationMapParity, ImageSource
from edgetl.core.config.export import ExportConfig
from edgetl.core.errors import ParityError
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.runtime.onnx_file import ACTIVATION_MAPS
from edgetl.device.runtime.session import create_session
from edgetl.export.bundle_writer import read_back
from edgetl.export.graph.activation_maps import FEATURE_ROWS
from edgetl.export.graph.assemble import with_outputs
from edgetl.export.graph.preprocessing import PIXELS
from edgetl.export.parity.metrics import load_network_inputs
from edgetl.export.parity.proof import iterate_batches
from edgetl.export.quantize.scoring import sqnr_db

Maps = NDArray[np.float32]
"""[batch, classes, h, w]."""
_IMAGES = 8
"""Number of proof images; each gives some dozens of locations."""
_POOLING_FUNCTIONS = (
    functional.adaptive_avg_pool2d,
    functional.avg_pool2d,
    torch.mean,
    torch.Tensor.mean,
)
_MIN_SQNR_DB = 20.0
"""Smallest signal-to-noise ratio of a smaller variant's maps for the same features.

The variants of networks with one linear layer have 55 to 87 dB.
"""


@dataclass(frozen=True)
class ActivationMapProof:
    """Proof of the output `activation_maps` of every variant of a bundle."""

    network: nn.Module
    """The PyTorch network, in eval mode."""
    preprocessing: Preprocessing
    files: Sequence[Path]
    """Proof images, of which the first are used."""
    kind: ImageSource
    tolerance: float
    """Largest |difference| of float32, relative to the largest |value| if that is above 1."""

    def check(self, file: Path, precision: str) -> ActivationMapParity:
        """Compare a file with PyTorch on identical tensors.

        Args:
            file: ONNX file of a variant.
            precision: its precision as in bundle.json.

        Raises:
            ParityError: the maps do not match.
        """
        extractor = onnx.utils.Extractor(read_back(file))
        maps_network = extractor.extract_model([PIXELS], [ACTIVATION_MAPS])
        model = with_outputs(maps_network, [FEATURE_ROWS])
        session = create_session(model.SerializeToString(), spinning=False)
        outputs = [
            session.run([ACTIVATION_MAPS, FEATURE_ROWS], {PIXELS: pixels})
            for pixels in self._batches
        ]
        maps = np.concatenate([values for values, _ in outputs])
        expected = np.concatenate(self._references)
        difference = float(np.abs(expected - maps).max())
        record = ActivationMapParity(len(maps), self.kind, difference, sqnr_db(expected, maps))
        if precision == "fp32":
            tolerance = self.tolerance * max(1.0, float(np.abs(expected).max()))
            record = replace(record, tolerance=tolerance)
            is_equal = difference <= tolerance  # also false for NaN
        else:
            references = [
                compute_activation_maps(self.network, pixels, rows.astype(np.float32))
                for pixels, (_, rows) in zip(self._batches, outputs, strict=True)
            ]
            is_equal = sqnr_db(np.concatenate(references), maps) >= _MIN_SQNR_DB
        if not is_equal:
            raise ParityError(
                f"The activation maps of {file.name} do not match PyTorch's: they differ by "
                f"{difference:.3g}, the largest value is {np.abs(expected).max():.3g}. No bundle "
                "was written. Remove {explain}.",
                ExportConfig,
            )
        return record

    @cached_property
    def _batches(self) -> list[NDArray[np.float32]]:
        """Network inputs of the proof images in batches of several sizes, [batch, 3, S, S]."""
        return [
            load_network_inputs(batch, self.preprocessing)
            for batch in iterate_batches(self.files[:_IMAGES])
        ]

    @cached_property
    def _references(self) -> list[Maps]:
        return [compute_activation_maps(self.network, pixels) for pixels in self._batches]


def compute_activation_maps(
    network: nn.Module, pixels: NDArray[np.float32], rows: NDArray[np.float32] | None = None
) -> Maps:
    """Compute the logits of each location with PyTorch, [batch, classes, h, w].

    Args:
        network: in eval mode.
        pixels: float32 [batch, 3, S, S].
        rows: features to classify instead of the network's own, see FEATURE_ROWS.

    Raises:
        ParityError: the network does not pool features in a way that is recognized, or its code
            after the pooling depends on the size of the batch.
    """
    inputs = torch.from_numpy(pixels)
    with torch.inference_mode():
        with _PoolingMode() as counter:
            network(inputs)
        with _PoolingMode(counter.count - 1, rows) as mode:
            try:
                logits: Tensor = network(inputs)
                maps = logits.reshape(len(inputs), *mode.grid, -1).permute(0, 3, 1, 2)
            except RuntimeError as cause:
                raise ParityError(
                    "The activation maps cannot be proven: PyTorch's network cannot classify single "
                    f"locations ({str(cause).splitlines()[0]}). Remove {{explain}}.",
                    ExportConfig,
                ) from cause
    return maps.contiguous().numpy()


class _PoolingMode(TorchFunctionMode):
    """Counter of global average poolings that replaces one of them.

    Args:
        replaced: number of the pooling to replace; None to count only.
        rows: result of the replaced pooling; None for the features of each location.
    """

    def __init__(
        self, replaced: int | None = None, rows: NDArray[np.float32] | None = None
    ) -> None:
        super().__init__()
        self.count = 0
        self.grid: Sequence[int] = ()
        """Height and width of the replaced pooling's input."""
        self._replaced = replaced
        self._rows = rows

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in _POOLING_FUNCTIONS:
            return result
        features = args[0] if args else (kwargs or {})["input"]
        channels_last = _move_channels_last(features, result)
        if channels_last is None:
            return result
        self.count += 1
        if self.count - 1 != self._replaced:
            return result
        self.grid = channels_last.shape[1:3]
        if self._rows is not None:
            return torch.from_numpy(self._rows)
        return channels_last.reshape(-1, *result.shape[1:])


def _move_channels_last(features: object, pooled: object) -> Tensor | None:
    """Return features as [batch, height, width, channels]; None if `pooled` is not their mean."""
    if not isinstance(features, Tensor) or not isinstance(pooled, Tensor) or features.ndim != 4:
        return None
    for axes, permutation in (((2, 3), (0, 2, 3, 1)), ((1, 2), (0, 1, 2, 3))):
        mean = features.mean(axes, keepdim=pooled.ndim == 4)
        if mean.shape == pooled.shape and torch.allclose(mean, pooled, 1e-4, 1e-4):
            return features.permute(permutation)
    return None
