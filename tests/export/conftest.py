"""Fixtures for the export tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.graphs import Export, quick_export


@pytest.fixture
def export(
    tmp_path_factory: pytest.TempPathFactory, random_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> Export:
    """Export as a user does, but cache the graphs of PyTorch's exporter."""
    return quick_export(tmp_path_factory, random_weights, monkeypatch)
