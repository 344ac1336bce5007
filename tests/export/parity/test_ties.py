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
from edgetl.export.parity.proof import TIE_TOLERANCE, EndToEndParity, ParityProof


def proof_with_logits(logits: list[float]) -> Any:
    proof: Any = ParityProof.__new__(ParityProof)
    proof._has_image_input = False
    proof._config = ExportConfig(input="tensor")
    proof._preprocessing = Preprocessing(resize=8, crop=8)
    proof._end_to_end_session = SimpleNamespace(
        run=lambda names, inputs: (np.array([logits], np.float32),)
    )
    proof._end_to_end_parity = EndToEndParity(kind="validation images", tolerance=0.05)
    return proof


def check(reference: list[float], logits: list[float]) -> EndToEndParity:
    proof = proof_with_logits(logits)
    images = np.zeros((1, 8, 8, 3), np.uint8)
    proof._check_end_to_end(images, images, np.array([reference], np.float32), [Path("part.png")])
    parity: EndToEndParity = proof._end_to_end_parity
    return parity


def test_proof_counts_ties_as_equal_labels() -> None:
    assert check([0.74433, 0.74414, -3.0], [0.740, 0.745, -3.0]).ties == 1
    assert check([0.75, 0.74414, -3.0], [0.749, 0.745, -3.0]).ties == 0


def test_proof_fails_when_label_differs() -> None:
    with pytest.raises(ParityError, match=r"the top-1 label of part\.png differs"):
        check([0.74 + 3 * TIE_TOLERANCE, 0.74, -3.0], [0.740, 0.745, -3.0])
