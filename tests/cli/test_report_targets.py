from __future__ import annotations

from pathlib import Path

import pytest

from edgetl.cli.report import detect_common_subject, detect_subject
from edgetl.core.errors import ConfigError
from tests.helpers.runs import write_bundle, write_run


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Path]:
    write_run(tmp_path / "one")
    write_run(tmp_path / "two", finished=False)
    write_bundle(tmp_path / "bundle")
    return {name: tmp_path / name for name in ("one", "two", "bundle", "missing")}


def test_detect_subject(paths: dict[str, Path]) -> None:
    assert {name: detect_subject(path) for name, path in paths.items()} == {
        "one": "run", "two": "run", "bundle": "bundle", "missing": "bench"
    }  # fmt: skip


def test_runs_are_shown_as_bench_results_among_other_paths(
    paths: dict[str, Path],
) -> None:
    assert (
        detect_common_subject([paths["one"]])
        == detect_common_subject([paths["one"], paths["one"]])
        == "run"
    )
    assert (
        detect_common_subject([paths["one"], paths["two"]])
        == detect_common_subject([paths["one"], paths["missing"]])
        == "bench"
    )


@pytest.mark.parametrize("other_name", ["one", "missing"])
def test_bundle_among_other_paths_is_rejected(paths: dict[str, Path], other_name: str) -> None:
    assert detect_common_subject([paths["bundle"]]) == "bundle"
    with pytest.raises(ConfigError, match="cannot share a page"):
        detect_common_subject([paths[other_name], paths["bundle"]])
