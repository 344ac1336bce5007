"""Where a session's time goes: ONNX Runtime's own profile, node by node."""

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
    """One node of the graph as ONNX Runtime runs it, after its own fusions."""

    name: str
    operator: str
    provider: str
    """Execution provider by onnxruntime's name."""
    microseconds: float
    """Median over the runs: one that another process has kept waiting is not to blame."""


def profile_nodes(
    open_session: Callable[[Path], onnxruntime.InferenceSession], feed: dict[str, Any], runs: int
) -> list[NodeTime]:
    """Profile `runs` runs of a new session.

    Args:
        open_session: makes a session whose profile files begin with the given path.
        feed: inputs by name.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(Path(folder, "profile"))
        for _ in range(runs):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    taken: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            about = event["args"]
            taken[
                event["name"].removesuffix("_kernel_time"),
                about["op_name"],
                about.get("provider", ""),
            ].append(event["dur"])
    return [NodeTime(*key, median(durations)) for key, durations in taken.items()]


def summarize_nodes(nodes: list[NodeTime]) -> dict[str, Any]:
    """Operators and nodes with their shares of the time, the costliest first."""
    total = sum(node.microseconds for node in nodes) or 1.0
    spent: dict[tuple[str, str], list[float]] = defaultdict(list)
    for node in nodes:
        spent[node.operator, node.provider].append(node.microseconds)
    operators = [
        {
            "operator": operator,
            "provider": provider,
            "nodes": len(times),
            "us": sum(times),
            "share": sum(times) / total,
        }
        for (operator, provider), times in spent.items()
    ]
    listed = [
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
        "nodes": sorted(listed, key=_descending_time),
    }


def _descending_time(entry: dict[str, Any]) -> float:
    return -float(entry["us"])
