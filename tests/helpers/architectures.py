"""Architectures of tests that cover all of torchvision's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

QUICK = ("mobilenet_v2", "mobilenet_v3_small", "resnet18", "squeezenet1_1", "shufflenet_v2_x0_5")
"""Architectures of the quick suite: inverted residuals, HardSwish, residuals, a head without a
linear layer, channel shuffles. `make test-slow` covers the others."""


def mark_slow(names: Iterable[str]) -> list[Any]:
    """Return the names as parameters of a test, slow except for those of the quick suite."""
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]
