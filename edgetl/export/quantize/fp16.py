"""float16 inside, float32 at both ends: half the size, and faster where the hardware has it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from edgetl.core.errors import ExportError
from edgetl.export.quantize.calibration import Calibration
from edgetl.export.quantize.cleanup import clean_up_graph
from edgetl.export.quantize.task import QuantizationTask, QuantizedModel

_FLOAT16_MAX = 65504.0
"""Of float16's finite numbers."""
_OVERFLOW_MARGIN = 4.0
"""Photos that were not seen may excite a channel more than those that were."""


def convert_to_fp16(task: QuantizationTask) -> QuantizedModel:
    """Convert all but the ends.

    Raises:
        ExportError: a weight or an activation is too large for float16.
    """
    task.notify("Checking float16 for overflow", 0, 0)
    name, largest = Calibration(task.network, task.images.held_out).largest_activation
    if largest * _OVERFLOW_MARGIN > _FLOAT16_MAX:
        raise ExportError(
            f"fp16 would overflow: {name} reaches {largest:.3g} on training images, and float16 ends at {_FLOAT16_MAX:g} "
            f"(a margin of {_OVERFLOW_MARGIN:g} is kept). Leave fp16 out of --variants."
        )
    for value in task.network.graph.initializer:
        weights = numpy_helper.to_array(value)
        if (
            weights.dtype == np.float32
            and weights.size
            and float(np.abs(weights).max()) > _FLOAT16_MAX
        ):
            raise ExportError(
                f"fp16 would overflow: the weights {value.name} reach {float(np.abs(weights).max()):.3g}. Leave fp16 out."
            )
    copy = onnx.ModelProto()
    copy.CopyFrom(task.network)
    logging.getLogger("onnxruntime.transformers.float16").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        # It warns of weights below float16's smallest number, which become it: far below what parity can see.
        warnings.simplefilter("ignore")
        converted: onnx.ModelProto = convert_float_to_float16(copy, keep_io_types=True)
    return QuantizedModel(
        clean_up_graph(converted),
        "fp16",
        {"largest_activation": {"value": name, "magnitude": largest}},
        summary="float16 inside",
    )
