"""Fixtures that speed up training tests.

Small models on small images gain nothing from threads or from kernels compiled for each shape.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from edgetl.train import results


@pytest.fixture(autouse=True)
def _plain_kernels() -> Iterator[None]:
    threads, mkldnn = torch.get_num_threads(), torch.backends.mkldnn.enabled
    torch.set_num_threads(1)
    torch.backends.mkldnn.set_flags(False)
    yield
    torch.set_num_threads(threads)
    torch.backends.mkldnn.set_flags(mkldnn)


@pytest.fixture(autouse=True)
def _plots_on_demand(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    # Drawing takes longer than training a small model on a few small images.
    if "plots" not in request.fixturenames:
        monkeypatch.setattr(results, "draw_plots", lambda *_: None)


@pytest.fixture
def plots() -> None:
    """Draw plots in this test: for tests of the plots or of the duration of a run."""
