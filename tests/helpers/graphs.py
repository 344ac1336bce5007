"""Graphs of PyTorch's exporter, which takes seconds, cached within a process."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from edgetl.export import exporter
from edgetl.export.graph.torch_export import NetworkGraph, export_network_graph
from edgetl.train.model.factory import load_stock_model
from tests.conftest import ARCHITECTURE


@cache
def cached_graph(weights: Path, image_size: int, classes: int, opset: int) -> NetworkGraph:
    """Return the graph of the test architecture with these weights."""
    network = load_stock_model(ARCHITECTURE, str(weights), image_size).model
    return export_network_graph(network, image_size, classes, opset)


def cache_graphs(weights: Path, patch: pytest.MonkeyPatch) -> None:
    """Let exports of the test architecture with these weights use `cached_graph`."""
    patch.setattr(
        exporter,
        "export_network_graph",
        lambda _network, *arguments: cached_graph(weights, *arguments),
    )
