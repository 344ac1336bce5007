from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgetl.cli.app import create_app
from edgetl.core.artifacts.bench_json import write_result
from edgetl.core.errors import BenchError, BundleError, ConfigError, EdgetlError, RunError
from tests.helpers.bench_results import bench_result, bench_row, device
from tests.helpers.runs import write_bundle, write_run


def run(*arguments: object) -> tuple[int, str, BaseException | None]:
    done = CliRunner().invoke(create_app(), ["report", *map(str, arguments)])
    return done.exit_code, done.stdout, done.exception


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.chdir(tmp_path)
    rows = (bench_row("pytorch", "fp32", 9.0), bench_row("onnxruntime", "fp32", 3.0))
    paths = [tmp_path / "results" / name for name in ("a.json", "b.json")]
    write_result(bench_result(rows), paths[0])
    write_result(bench_result(rows, device=device("[red]second[/]", "Another")), paths[1])
    return paths


def test_one_table_and_one_page(results: list[Path]) -> None:
    status, shown, _ = run(*results)
    assert status == 0
    assert "[red]second[/]" in shown
    assert shown.count("faster") == 2
    assert "Cortex-A76" in Path("report.html").read_text(encoding="utf-8")


def test_a_folder_gives_all_of_its_results_and_json_is_one_object(results: list[Path]) -> None:
    status, shown, _ = run(results[0].parent, results[0], "-o", "all.html", "--json")
    content = json.loads(shown)
    assert status == 0
    assert (content["schema"], content["kind"], content["page"]) == (1, "report", "all.html")
    assert len(content["results"]) == 2, "a file that was named twice counts once"
    assert content["results"][0]["rows"][1]["p50_ms"] == pytest.approx(3.0, rel=0.05)
    assert "rounds" not in content["results"][0]["rows"][0]


def test_own_pages_are_replaced_and_others_kept(results: list[Path]) -> None:
    assert run(results[0])[0] == run(results[1])[0] == 0
    Path("report.html").write_text("<p>mine", encoding="utf-8")
    error = failure(results[0])
    assert isinstance(error, ConfigError)
    assert "--force" in str(error)
    assert Path("report.html").read_text(encoding="utf-8") == "<p>mine"
    assert run(results[0], "--force")[0] == 0
    assert "<!doctype html>" in Path("report.html").read_text(encoding="utf-8")


def test_mistakes_are_one_sentence(results: list[Path], tmp_path: Path) -> None:
    assert "not found" in str(failure("missing.json"))
    (tmp_path / "empty").mkdir()
    assert "No bench results in" in str(failure("empty"))
    Path("odd.json").write_text('{"schema": 1, "kind": "something"}', encoding="utf-8")
    assert "is not a bench result" in str(failure("odd.json"))
    Path("new.json").write_text('{"schema": 2}', encoding="utf-8")
    assert "schema 2" in str(failure("new.json"))
    Path("text.json").write_text("hello", encoding="utf-8")
    assert "not valid JSON" in str(failure("text.json"))
    assert "must be a file, got the folder" in str(failure(results[0], "-o", "empty"))
    assert not Path("report.html").exists()


def test_a_run_is_a_summary_and_a_page_inside_it(results: list[Path]) -> None:
    write_run(Path("runs/[red]one[/]"))
    status, shown, _ = run("runs/[red]one[/]")
    assert status == 0
    assert shown.splitlines()[:2] == [
        "mobilenet_v2, 3 classes",
        "Validation accuracy: 83.3% of 30 images (95% interval 66.4% to 92.7%).",
    ]
    assert len(shown.splitlines()) < 10
    assert "<!doctype html>" in Path("runs/[red]one[/]/report.html").read_text(encoding="utf-8")
    assert not Path("report.html").exists()
    assert run("runs/[red]one[/]", "-o", "elsewhere.html")[0] == 0
    assert Path("elsewhere.html").exists()


def test_a_run_as_json_is_one_object_with_its_results(results: list[Path]) -> None:
    one = write_run(Path("runs/one"))
    one.bench.mkdir()
    results[0].rename(one.bench / "a.json")
    status, shown, _ = run(one.path, "--json")
    content = json.loads(shown)
    assert status == 0
    assert (content["schema"], content["kind"], content["page"]) == (
        1,
        "report",
        "runs/one/report.html",
    )
    assert content["run"]["metrics"]["val"]["images"] == 30
    assert content["run"]["kept_epoch"] == 6
    assert len(content["results"]) == 1
    assert "All latencies" in (one.report).read_text(encoding="utf-8")


def test_an_unfinished_run_is_told(results: list[Path]) -> None:
    one = write_run(Path("runs/one"), finished=False)
    status, shown, _ = run(one.path)
    assert status == 0
    assert "Not finished: metrics.json not found" in shown
    assert json.loads(run(one.path, "--json")[1])["run"]["metrics"] is None


def test_several_runs_are_their_bench_results(results: list[Path]) -> None:
    for number, result in enumerate(results):
        one = write_run(Path(f"runs/{number}"))
        one.bench.mkdir()
        result.rename(one.bench / "a.json")
    status, shown, _ = run("runs/0", "runs/1")
    assert status == 0
    assert shown.count("faster") == 2
    assert Path("report.html").exists()
    write_run(Path("runs/2"))
    assert "No bench results in runs/2" in str(failure("runs/0", "runs/2"))


def test_a_bundle_is_a_summary_and_a_page_beside_it(results: list[Path]) -> None:
    bundle = write_bundle(Path("bundle"))
    before = sorted(bundle.path.rglob("*"))
    status, shown, _ = run(bundle.path)
    assert status == 0
    assert "Recommended: int8 (int8.onnx, 2.5 MB), of 2 variants." in shown
    assert "Bundle of mobilenet_v2" in Path("report.html").read_text(encoding="utf-8")
    assert sorted(bundle.path.rglob("*")) == before, "what is copied to a device stays as it is"
    content = json.loads(run(bundle.path, "--json")[1])
    assert content["bundle"]["variants"][1]["accuracy"]["top1"] == 0.8
    assert content["bundle"]["files"]["int8.onnx"] == "as proven"
    assert "give it alone" in str(failure(bundle.path, results[0]))


def test_broken_runs_and_bundles_are_one_sentence(results: list[Path]) -> None:
    one, bundle = write_run(Path("runs/one")), write_bundle(Path("bundle"))
    one.metrics.write_text('{"schema": 7}', encoding="utf-8")
    assert "schema 7" in str(failure(one.path))
    one.metrics.write_text("[", encoding="utf-8")
    assert "not valid JSON" in str(failure(one.path))
    bundle.manifest.write_text('{"schema": 1}', encoding="utf-8")
    assert "bundle.json is broken" in str(failure(bundle.path))
    assert not Path("report.html").exists()
    assert not one.report.exists()


def failure(*arguments: object) -> EdgetlError:
    status, _, error = run(*arguments)
    assert status != 0
    assert isinstance(error, BenchError | ConfigError | RunError | BundleError)
    assert "\n" not in str(error)
    return error
