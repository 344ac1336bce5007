"""Profile a session node by node with ONNX Runtime's profiler."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from edgetl.core.artifacts.session import ProfiledNode, ProfiledOperator

if TYPE_CHECKING:
    import onnxruntime


def profile_nodes(
    open_session: Callable[[Path], onnxruntime.InferenceSession],
    feed: Mapping[str, object],
    runs: int,
) -> list[ProfiledNode]:
    """Profile a new session and return the nodes, slowest first.

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
    medians = {key: median(times) for key, times in durations.items()}
    total = sum(medians.values()) or 1.0
    nodes = [ProfiledNode(*key, us, us / total) for key, us in medians.items()]
    return sorted(nodes, key=lambda node: -node.us)


def summarize_operators(nodes: Sequence[ProfiledNode]) -> tuple[ProfiledOperator, ...]:
    """Return the time by operator and provider, slowest first."""
    total = sum(node.us for node in nodes) or 1.0
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for node in nodes:
        times[node.operator, node.provider].append(node.us)
    operators = [
        ProfiledOperator(operator, provider, len(values), sum(values), sum(values) / total)
        for (operator, provider), values in times.items()
    ]
    return tuple(sorted(operators, key=lambda operator: -operator.us))
