from __future__ import annotations

import pytest

from edgetl.report.run_words import duration


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.42, "0.4 s"),
        (9.96, "10 s"),
        (21.5, "22 s"),
        (99.6, "1 min 40 s"),
        (250, "4 min 10 s"),
        (3569.4, "59 min 29 s"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations(seconds: float, told: str) -> None:
    assert duration(seconds) == told
