"""Facts about the test architecture that take seconds to compute, computed once per process."""

from __future__ import annotations

from edgetl.train.model.stock_models import find_stock_classifier
from tests.conftest import ARCHITECTURE, IMAGE_SIZE

# Processes forked from a server that has imported this module reuse its cached analysis.
find_stock_classifier(ARCHITECTURE, IMAGE_SIZE)
