from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgetl.train.common.autotune import cached_measurement


@pytest.mark.parametrize("entry", [None, [], {}, {"ms": "fast"}])
def test_cached_measurement_repeats_invalid_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: object
) -> None:
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path))
    measured: list[float] = []

    def measure() -> dict[str, float]:
        measured.append(1.5)
        return {"ms": 1.5}

    assert [cached_measurement(dict[str, float], {"a": 1}, measure)["ms"] for _ in range(2)] == [
        1.5,
        1.5,
    ]
    assert len(measured) == 1
    (path,) = (tmp_path / "measured").iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), "found": entry}))
    assert [cached_measurement(dict[str, float], {"a": 1}, measure)["ms"] for _ in range(2)] == [
        1.5,
        1.5,
    ]
    assert len(measured) == 2
