"""Which operators eat the time of a network: read off ONNX Runtime's own profile."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx

from edgetl.device.session import create_session
from edgetl.export.network_graph import LOGITS
from edgetl.export.preprocessing_graph import PIXELS

_RUNS = 20
_PRODUCTS = ("QLinearConv", "QGemm", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul")
"""What integers are faster at."""
_QUANTIZED = (
    "QLinear", "QuantizeLinear", "DequantizeLinear", "DynamicQuantize", "MaxPool", "NhwcMaxPool",
    "Concat", "Flatten", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
)  # fmt: skip
"""What else works on integers, converts to and from them, or moves either."""
_NAMED, _LEAST_SHARE = 6, 0.02


def operator_times(network: onnx.ModelProto) -> dict[str, dict[str, Any]]:
    """Operator type, after ONNX Runtime's own fusions, to {"nodes", "share"} of the time of a run; the costliest first."""
    with tempfile.TemporaryDirectory() as folder:
        session = create_session(network.SerializeToString(), profile_prefix=Path(folder) / "profile")
        sides = [dimension.dim_value for dimension in network.graph.input[0].type.tensor_type.shape.dim[1:]]
        # Times do not depend on what the picture shows.
        image = np.zeros((1, *sides), np.float32)
        for _ in range(_RUNS):
            session.run([LOGITS], {PIXELS: image})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    taken: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            taken[event["args"]["op_name"], event["name"]].append(event["dur"])
    spent: dict[str, list[float]] = defaultdict(list)
    for (kind, _), durations in taken.items():
        # The median of each node: one that another process has kept waiting is not to blame.
        spent[kind].append(median(durations))
    total = sum(map(sum, spent.values())) or 1.0
    return {
        kind: {"nodes": len(spent[kind]), "share": sum(spent[kind]) / total} for kind in sorted(spent, key=lambda kind: -sum(spent[kind]))
    }


def to_blame(times: dict[str, dict[str, Any]]) -> str:
    """What a quantized network spends its time on besides multiplying integers, in words: the costliest operators."""
    named = [(kind, found) for kind, found in times.items() if not kind.startswith(_PRODUCTS) and found["share"] >= _LEAST_SHARE]
    return ", ".join(
        f"{kind} ({found['nodes']} nodes, {found['share']:.0%} of the time{'' if kind.startswith(_QUANTIZED) else ', in float'})"
        for kind, found in named[:_NAMED]
    )
