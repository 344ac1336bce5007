"""Conversion to float16 with float32 input and output: half the size, faster on suited hardware."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from edgetl.core.artifacts.bundle import Float16Record, LargestActivation
from edgetl.core.config.export import ExportConfig
from edgetl.core.errors import ExportError
from edgetl.export.quantize.calibration import Calibration
from edgetl.export.quantize.cleanup import clean_up_graph
from edgetl.export.quantize.task import QuantizationTask, QuantizedModel

_FLOAT16_MAX = 65504.0
"""Largest finite float16 number."""
_OVERFLOW_MARGIN = 4.0
"""Margin for unseen photos, whose activations may be larger."""


def convert_to_fp16(task: QuantizationTask) -> QuantizedModel:
    """Convert the network to float16, except its input and output.

    Raises:
        ExportError: a weight or an activation is too large for float16.
    """
    task.notify("Checking float16 for overflow", 0, 0)
    name, largest = Calibration(task.network, task.images.held_out).largest_activation
    if largest * _OVERFLOW_MARGIN > _FLOAT16_MAX:
        raise ExportError(
            f"fp16 would overflow: {name} reaches {largest:.3g} on training images, and the float16 limit is "
            f"{_FLOAT16_MAX:g} (with a safety factor of {_OVERFLOW_MARGIN:g}). Remove fp16 from {{variants}}.",
            ExportConfig,
        )
    for value in task.network.graph.initializer:
        weights = numpy_helper.to_array(value)
        if weights.dtype != np.float32 or not weights.size:
            continue
        peak = float(np.abs(weights).max())
        if peak > _FLOAT16_MAX:
            raise ExportError(
                f"fp16 would overflow: the weights {value.name} reach {peak:.3g}. Remove fp16 from {{variants}}.",
                ExportConfig,
            )
    copy = onnx.ModelProto()
    copy.CopyFrom(task.network)
    logging.getLogger("onnxruntime.transformers.float16").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        # Suppress warnings about weights below float16's smallest number. They are rounded to it,
        # which is far below what the parity proof can detect.
        warnings.simplefilter("ignore")
        converted: onnx.ModelProto = convert_float_to_float16(copy, keep_io_types=True)
    return QuantizedModel(
        clean_up_graph(converted),
        "fp16",
        "float16 inside",
        Float16Record(LargestActivation(name, largest)),
    )
