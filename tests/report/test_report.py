"""`write_report`: subjects and their default pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetl import __version__
from edgetl.core.artifacts.bench_json import read_result, write_result
from edgetl.core.errors import ConfigError
from edgetl.core.files import write_text
from edgetl.core.paths import ExperimentDirectory, RunDirectory
from edgetl.report.report import detect_common_kind, detect_kind, write_report
from tests.helpers.bench_results import bench_result, bench_row
from tests.helpers.experiments import made_experiment
from tests.helpers.runs import write_bundle, write_run


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Path]:
    write_run(tmp_path / "one")
    write_run(tmp_path / "two", finished=False)
    write_bundle(tmp_path / "bundle")
    return {name: tmp_path / name for name in ("one", "two", "bundle", "missing")}


def test_detect_kind(paths: dict[str, Path]) -> None:
    assert {name: detect_kind(path) for name, path in paths.items()} == {
        "one": "run", "two": "run", "bundle": "bundle", "missing": "bench"
    }  # fmt: skip


def test_runs_are_shown_as_bench_results_among_other_paths(
    paths: dict[str, Path],
) -> None:
    assert (
        detect_common_kind([paths["one"]])
        == detect_common_kind([paths["one"], paths["one"]])
        == "run"
    )
    assert (
        detect_common_kind([paths["one"], paths["two"]])
        == detect_common_kind([paths["one"], paths["missing"]])
        == "bench"
    )


@pytest.mark.parametrize("other_name", ["one", "missing"])
def test_bundle_among_other_paths_is_rejected(paths: dict[str, Path], other_name: str) -> None:
    assert detect_common_kind([paths["bundle"]]) == "bundle"
    with pytest.raises(ConfigError, match="cannot share a page"):
        detect_common_kind([paths[other_name], paths["bundle"]])


def test_report_accepts_objects_and_paths(
    paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(paths["one"].parent)
    result = bench_result((bench_row("onnxruntime", "fp32", 3.0),))
    page = write_report(RunDirectory("one")).page
    text = page.read_text(encoding="utf-8")
    assert page == RunDirectory("one").report
    assert write_report("one", output="copy.html").page == Path("copy.html")
    assert Path("copy.html").read_text(encoding="utf-8") == text
    write_result(result, Path("results/a.json"))
    write_report("results/a.json", "from-file.html")
    measured = read_result(Path("results/a.json"))
    report = write_report(measured)
    assert report.page == Path("report.html")
    assert report.results == (measured,)
    assert Path("report.html").read_text(encoding="utf-8") == Path("from-file.html").read_text(
        encoding="utf-8"
    )
    assert len(write_report([Path("results"), result]).results) == 2


def test_report_kind_follows_subject(paths: dict[str, Path], tmp_path: Path) -> None:
    bundle = write_report(paths["bundle"], tmp_path / "bundle.html")
    assert (bundle.kind, bundle.to_json()["kind"]) == ("bundle", "report")
    assert bundle.bundle is not None
    assert "results" not in bundle.to_json()
    run = write_report(paths["one"])
    assert run.kind == "run"
    assert run.to_json()["results"] == []
    assert repr(run) == f"Report({str(run.page)!r}, kind='run', 0 results)"


def test_report_of_nothing_is_rejected() -> None:
    with pytest.raises(ConfigError, match="Nothing to report on"):
        write_report([])


def test_markdown_is_written_for_results_and_experiments(
    paths: dict[str, Path], tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    result = bench_result((bench_row("onnxruntime", "fp32", 3.0),))
    assert write_report(result, page).page == page
    marker, title, *_ = page.read_text(encoding="utf-8").splitlines()
    assert (marker, title) == (
        f"<!-- generator: edgetl {__version__} -->",
        "# Latency of mobilenet_v2",
    )
    experiment = made_experiment({"mobilenet_v2-224/head": (0.9, 10.0)})
    folder = ExperimentDirectory(tmp_path / "experiment")
    write_text(folder.plan, "{}")
    experiment.write(folder.result)
    write_report(folder.path, page)
    assert "# Transfer learning on your images" in page.read_text(encoding="utf-8")
    page.write_text("# Mine\n<!-- generator: edgetl")
    with pytest.raises(ConfigError, match="was not written by edgetl"):
        write_report(result, page)
    with pytest.raises(ConfigError, match=r"can be written in Markdown, got --output .*bundle\.md"):
        write_report(paths["bundle"], tmp_path / "bundle.md")
    assert not (tmp_path / "bundle.md").exists()
