"""Fixtures for the export tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetl.core.config.export import ExportConfig
from edgetl.export.exporter import export_architecture
from tests.conftest import ARCHITECTURE, IMAGE_SIZE
from tests.helpers.graphs import cache_graphs


@pytest.fixture
def export(random_weights: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Export as a user does, but cache the graphs of PyTorch's exporter, which takes seconds."""
    cache_graphs(random_weights, monkeypatch)
    return lambda output, images=None, **options: export_architecture(
        ARCHITECTURE,
        str(random_weights),
        ExportConfig(output=output, **options),
        images,
        IMAGE_SIZE,
    )
