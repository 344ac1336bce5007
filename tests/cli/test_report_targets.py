from __future__ import annotations

from pathlib import Path

import pytest

from edgetl.cli.report import detect_common_subject, detect_subject
from edgetl.core.errors import ConfigError
from tests.helpers.runs import write_bundle, write_run


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    write_run(tmp_path / "one")
    write_run(tmp_path / "two", finished=False)
    write_bundle(tmp_path / "bundle")
    return {name: tmp_path / name for name in ("one", "two", "bundle", "missing")}


def test_what_lies_at_a_path(places: dict[str, Path]) -> None:
    assert {name: detect_subject(path) for name, path in places.items()} == {
        "one": "run", "two": "run", "bundle": "bundle", "missing": "bench"
    }  # fmt: skip


def test_a_run_has_its_own_page_alone_and_shows_latencies_among_others(
    places: dict[str, Path],
) -> None:
    assert (
        detect_common_subject([places["one"]])
        == detect_common_subject([places["one"], places["one"]])
        == "run"
    )
    assert (
        detect_common_subject([places["one"], places["two"]])
        == detect_common_subject([places["one"], places["missing"]])
        == "bench"
    )


@pytest.mark.parametrize("other", ["one", "missing"])
def test_a_bundle_must_be_alone(places: dict[str, Path], other: str) -> None:
    assert detect_common_subject([places["bundle"]]) == "bundle"
    with pytest.raises(ConfigError, match="give it alone"):
        detect_common_subject([places[other], places["bundle"]])
