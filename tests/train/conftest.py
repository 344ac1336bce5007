"""Small networks on small images gain nothing from threads or from kernels compiled for each shape; they only wait for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _plain_kernels() -> Iterator[None]:
    threads, mkldnn = torch.get_num_threads(), torch.backends.mkldnn.enabled
    torch.set_num_threads(1)
    torch.backends.mkldnn.set_flags(False)
    yield
    torch.set_num_threads(threads)
    torch.backends.mkldnn.set_flags(mkldnn)
