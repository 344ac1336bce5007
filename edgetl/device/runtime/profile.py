"""Profile a session node by node with ONNX Runtime's profiler."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import onnxruntime


@dataclass(frozen=True)
class NodeTime:
    """Time of one node of the graph after ONNX Runtime's fusions."""

    name: str
    operator: str
    provider: str
    """onnxruntime's name of the execution provider."""
    microseconds: float
    """Median over the runs, which ignores runs delayed by other processes."""


def profile_nodes(
    open_session: Callable[[Path], onnxruntime.InferenceSession], feed: dict[str, Any], runs: int
) -> list[NodeTime]:
    """Profile a new session.

    Args:
        open_session: creates a session whose profile files start with the given path.
        feed: inputs by name.
        runs: number of inferences.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(Path(folder, "profile"))
        for _ in range(runs):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    durations: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            arguments = event["args"]
            key = (name, arguments["op_name"], arguments.get("provider", ""))
            durations[key].append(event["dur"])
    return [NodeTime(*key, median(values)) for key, values in durations.items()]


def summarize_nodes(nodes: list[NodeTime]) -> dict[str, Any]:
    """Return operators and nodes with their shares of the time, the slowest first."""
    total = sum(node.microseconds for node in nodes) or 1.0
    operator_times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for node in nodes:
        operator_times[node.operator, node.provider].append(node.microseconds)
    operators = [
        {
            "operator": operator,
            "provider": provider,
            "nodes": len(times),
            "us": sum(times),
            "share": sum(times) / total,
        }
        for (operator, provider), times in operator_times.items()
    ]
    node_entries = [
        {
            "node": node.name,
            "operator": node.operator,
            "provider": node.provider,
            "us": node.microseconds,
            "share": node.microseconds / total,
        }
        for node in nodes
    ]
    return {
        "operators": sorted(operators, key=_descending_time),
        "nodes": sorted(node_entries, key=_descending_time),
    }


def _descending_time(entry: dict[str, Any]) -> float:
    return -float(entry["us"])
