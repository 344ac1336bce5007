"""Fixtures for the export tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetl.core.config.export import ExportConfig
from edgetl.export import exporter
from edgetl.export.exporter import export_architecture
from tests.conftest import ARCHITECTURE, IMAGE_SIZE
from tests.helpers.graphs import cached_graph


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
