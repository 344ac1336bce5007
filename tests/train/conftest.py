"""Small networks on small images gain nothing from threads or from kernels compiled for each shape; they only wait for them."""

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
    # Drawing takes longer than training a small network on a few small images.
    if "plots" not in request.fixturenames:
        monkeypatch.setattr(results, "draw_plots", lambda *given: None)


@pytest.fixture
def plots() -> None:
    """For tests of what is drawn, or of how long a run takes in all: runs in the test's own process draw their plots, as for users."""
