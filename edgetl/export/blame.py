"""Which operators eat the time of a network: read off ONNX Runtime's own profile."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgetl.device.session import create_session
from edgetl.export.network_graph import LOGITS
from edgetl.export.preprocessing_graph import PIXELS

_RUNS = 20
_QUANTIZED = ("QLinear", "QGemm", "QuantizeLinear", "DequantizeLinear", "ConvInteger", "MatMulInteger", "Dynamic", "MaxPool", "Reshape")
_NAMED = 4


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
    spent: dict[str, float] = defaultdict(float)
    nodes: dict[str, set[str]] = defaultdict(set)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            kind = event["args"]["op_name"]
            spent[kind] += event["dur"]
            nodes[kind].add(event["name"])
    total = sum(spent.values()) or 1.0
    return {kind: {"nodes": len(nodes[kind]), "share": spent[kind] / total} for kind in sorted(spent, key=lambda kind: -spent[kind])}


def float_islands(times: dict[str, dict[str, Any]]) -> str:
    """The operators of a quantized network that still work in float, in words; empty where there are none."""
    islands = [(kind, found) for kind, found in times.items() if not kind.startswith(_QUANTIZED)]
    return ", ".join(f"{kind} ({found['nodes']} nodes, {found['share']:.0%} of the time)" for kind, found in islands[:_NAMED])


def conversions(times: dict[str, dict[str, Any]]) -> float:
    """Share of the time that goes into changing between float and integers."""
    return float(sum(found["share"] for kind, found in times.items() if kind in ("QuantizeLinear", "DequantizeLinear", "Cast")))
