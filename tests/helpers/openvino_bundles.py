"""Bundle of a stock architecture with files for OpenVINO."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetl.export import exporter
from tests.helpers.graphs import quick_export
from tests.helpers.shared_files import build_once


def openvino_bundle(factory: pytest.TempPathFactory, weights: Path) -> Path:
    """Return a bundle with the variants fp32 and openvino-*, not timed. Read-only."""

    def build(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(exporter, "_add_latencies", lambda manifest, *arguments: manifest)
            quick_export(factory, weights, patch)(folder / "bundle", formats=("openvino",))

    return build_once(factory, "openvino", build) / "bundle"
