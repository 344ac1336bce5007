"""Two labels that PyTorch itself hardly tells apart do not end an export; anything clearer does."""

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


def proof_that_answers(answer: list[float]) -> Any:
    proof: Any = ParityProof.__new__(ParityProof)
    proof._image_input, proof._config, proof._contract = (
        False,
        ExportConfig(input="tensor"),
        Preprocessing(resize=8, crop=8),
    )
    proof._whole_session = SimpleNamespace(
        run=lambda names, feed: (np.array([answer], np.float32),)
    )
    proof._path = EndToEndParity(kind="validation images", tolerance=0.05)
    return proof


def judged(reference: list[float], answer: list[float]) -> EndToEndParity:
    proof = proof_that_answers(answer)
    images = np.zeros((1, 8, 8, 3), np.uint8)
    proof._check_end_to_end(images, images, np.array([reference], np.float32), [Path("part.png")])
    path: EndToEndParity = proof._path
    return path


def test_a_tie_is_counted_and_passes() -> None:
    assert judged([0.74433, 0.74414, -3.0], [0.740, 0.745, -3.0]).ties == 1
    assert judged([0.75, 0.74414, -3.0], [0.749, 0.745, -3.0]).ties == 0


def test_another_label_is_refused() -> None:
    with pytest.raises(ParityError, match=r"the top-1 label of part\.png is another"):
        judged([0.74 + 3 * TIE_TOLERANCE, 0.74, -3.0], [0.740, 0.745, -3.0])
