"""Nearly tied labels pass the parity proof; other label differences fail it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgetl.core.config.export import ExportConfig
from edgetl.core.errors import ParityError
from edgetl.core.preprocessing import Preprocessing
from edgetl.export.parity.proof import TIE_TOLERANCE, ParityProof, _Differences


def proof_with_logits(logits: list[float]) -> Any:
    proof: Any = ParityProof.__new__(ParityProof)
    proof._has_image_input = False
    proof._config = ExportConfig(input="tensor")
    proof._preprocessing = Preprocessing(resize=8, crop=8)
    proof._end_to_end_session = SimpleNamespace(
        run=lambda names, inputs: (np.array([logits], np.float32),)
    )
    proof._largest = _Differences()
    return proof


def count_ties(reference: list[float], logits: list[float]) -> int:
    proof = proof_with_logits(logits)
    images = np.zeros((1, 8, 8, 3), np.uint8)
    proof._check_end_to_end(images, images, np.array([reference], np.float32), [Path("part.png")])
    ties: int = proof._largest.ties
    return ties


def test_proof_counts_ties_as_equal_labels() -> None:
    assert count_ties([0.74433, 0.74414, -3.0], [0.740, 0.745, -3.0]) == 1
    assert count_ties([0.75, 0.74414, -3.0], [0.749, 0.745, -3.0]) == 0


def test_proof_fails_when_label_differs() -> None:
    with pytest.raises(ParityError, match=r"the top-1 label of part\.png differs"):
        count_ties([0.74 + 3 * TIE_TOLERANCE, 0.74, -3.0], [0.740, 0.745, -3.0])
