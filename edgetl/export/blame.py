"""Which operators eat the time of a network: read off ONNX Runtime's own profile."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from edgetl.device.operators import node_times, summary
from edgetl.device.session import create_session
from edgetl.export.preprocessing_graph import PIXELS

_RUNS = 20
_PRODUCTS = (
    "QLinearConv",
    "QGemm",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
    "DynamicQuantizeMatMul",
)
"""What integers are faster at."""
_QUANTIZED = (
    "QLinear", "QuantizeLinear", "DequantizeLinear", "DynamicQuantize", "MaxPool", "NhwcMaxPool",
    "Concat", "Flatten", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
)  # fmt: skip
"""What else works on integers, converts to and from them, or moves either."""
_NAMED, _LEAST_SHARE = 6, 0.02


def operator_times(network: onnx.ModelProto) -> dict[str, dict[str, Any]]:
    """Operator type, after ONNX Runtime's own fusions, to {"nodes", "share"} of the time of a run; the costliest first."""
    sides = [
        dimension.dim_value for dimension in network.graph.input[0].type.tensor_type.shape.dim[1:]
    ]
    # Times do not depend on what the picture shows.
    image, content = np.zeros((1, *sides), np.float32), network.SerializeToString()
    found = summary(
        node_times(
            lambda prefix: create_session(content, profile_prefix=prefix), {PIXELS: image}, _RUNS
        )
    )
    return {
        entry["operator"]: {"nodes": entry["nodes"], "share": entry["share"]}
        for entry in found["operators"]
    }


def to_blame(times: dict[str, dict[str, Any]]) -> str:
    """What a quantized network spends its time on besides multiplying integers, in words: the costliest operators."""
    named = [
        (kind, found)
        for kind, found in times.items()
        if not kind.startswith(_PRODUCTS) and found["share"] >= _LEAST_SHARE
    ]
    return ", ".join(
        f"{kind} ({found['nodes']} nodes, {found['share']:.0%} of the time{'' if kind.startswith(_QUANTIZED) else ', in float'})"
        for kind, found in named[:_NAMED]
    )
