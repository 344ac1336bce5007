from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.runtime.images import load_image
from tests.helpers.bundles import colour_logits, colour_model, write_bundle, write_pictures

BRIEF = BenchProtocol(
    slices=2,
    block_seconds=0.01,
    block_runs=20,
    window_seconds=0.002,
    window_runs=5,
    max_windows=4,
    random_inputs=2,
)


@pytest.fixture
def brief() -> BenchProtocol:
    """Return a protocol that goes through every step, too short for meaningful timings."""
    return BRIEF


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a bundle of the color model with an error in its logits."""

    def make(
        name: str = "bundle", error: float = 0.0, variants: tuple[str, ...] = ("fp32",)
    ) -> Path:
        folder = tmp_path / name
        paths = write_pictures(folder / "golden")
        logits = np.stack([colour_logits(load_image(path)) for path in paths]) + np.float32(error)
        return write_bundle(folder, dict.fromkeys(variants, colour_model()), logits)

    return make
