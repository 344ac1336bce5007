"""Fixtures for the export tests."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from edgetl.core.config.export import ExportConfig
from edgetl.export import exporter
from edgetl.export.exporter import export_architecture
from edgetl.export.graph.torch_export import NetworkGraph, export_network_graph
from edgetl.train.model.factory import load_stock_model
from tests.conftest import ARCHITECTURE, IMAGE_SIZE


@pytest.fixture
def export(random_weights: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Export as a user does, but cache the graphs of PyTorch's exporter, which takes seconds."""
    monkeypatch.setattr(
        exporter,
        "export_network_graph",
        lambda _network, *arguments: cached_graph(random_weights, *arguments),
    )
    return lambda output, images=None, **options: export_architecture(
        ARCHITECTURE,
        str(random_weights),
        ExportConfig(output=output, **options),
        images,
        IMAGE_SIZE,
    )


@cache
def cached_graph(weights: Path, image_size: int, classes: int, opset: int) -> NetworkGraph:
    network = load_stock_model(ARCHITECTURE, str(weights), image_size).model
    return export_network_graph(network, image_size, classes, opset)
