"""Facts about the test architecture that take seconds to compute, computed once per process."""

from __future__ import annotations

from edgetl.train.model.factory import build_adapted_model
from tests.conftest import ARCHITECTURE, IMAGE_SIZE

# Processes forked from a server that has imported this module reuse its cached analysis.
build_adapted_model(ARCHITECTURE, IMAGE_SIZE, 2, 0, 0.0, None, initialize=False)
