"""Outputs that no device could be checked with are refused at the export."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from edgetl.core.errors import ParityError
from edgetl.export.formats.proof import _SessionRunner


@pytest.mark.parametrize("score", [np.inf, np.nan])
def test_scores_that_are_not_finite_are_refused(score: float) -> None:
    session = SimpleNamespace(
        output_names=("logits", "unknown_score"),
        run=lambda names, batch: [np.zeros((1, 3), np.float32), np.full(1, score, np.float16)],
    )
    images = SimpleNamespace(batches=lambda size: [np.zeros((1, 3, 8, 8), np.float32)])

    with pytest.raises(ParityError, match="unknown scores are not finite"):
        _SessionRunner(session, builder=None).run_crops(images)  # type: ignore[arg-type]
