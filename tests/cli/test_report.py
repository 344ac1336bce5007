from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgetl.cli.app import create_app
from edgetl.core.artifacts.bench_json import write_result
from edgetl.core.artifacts.gate import GateResult
from edgetl.core.errors import BenchError, BundleError, ConfigError, EdgetlError, RunError
from tests.helpers.bench_results import accuracy, bench_result, bench_row, device
from tests.helpers.runs import write_bundle, write_run


def run(*arguments: object) -> tuple[int, str, BaseException | None]:
    outcome = CliRunner().invoke(create_app(), ["report", *map(str, arguments)])
    return outcome.exit_code, outcome.stdout, outcome.exception


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.chdir(tmp_path)
    rows = (bench_row("pytorch", "fp32", 9.0), bench_row("onnxruntime", "fp32", 3.0))
    paths = [tmp_path / "results" / name for name in ("a.json", "b.json")]
    write_result(bench_result(rows), paths[0])
    write_result(bench_result(rows, device=device("[red]second[/]", "Another")), paths[1])
    return paths


def test_results_are_shown_in_one_table_and_page(results: list[Path]) -> None:
    status, text, _ = run(*results)
    assert status == 0
    assert "[red]second[/]" in text
    assert text.count("faster") == 2
    assert "Cortex-A76" in Path("report.html").read_text(encoding="utf-8")


def test_json_contains_all_results_of_a_folder(results: list[Path]) -> None:
    status, text, _ = run(results[0].parent, results[0], "-o", "all.html", "--json")
    content = json.loads(text)
    assert status == 0
    assert (content["schema"], content["kind"], content["page"]) == (1, "report", "all.html")
    assert len(content["results"]) == 2, "duplicate paths count once"
    assert content["results"][0]["rows"][1]["p50_ms"] == pytest.approx(3.0, rel=0.05)
    assert "rounds" not in content["results"][0]["rows"][0]


def test_only_pages_written_by_edgetl_are_overwritten(results: list[Path]) -> None:
    assert run(results[0])[0] == run(results[1])[0] == 0
    Path("report.html").write_text("<p>mine", encoding="utf-8")
    error = failure(results[0])
    assert isinstance(error, ConfigError)
    assert "--force" in str(error)
    assert Path("report.html").read_text(encoding="utf-8") == "<p>mine"
    assert run(results[0], "--force")[0] == 0
    assert "<!doctype html>" in Path("report.html").read_text(encoding="utf-8")


def test_invalid_paths_are_rejected(results: list[Path], tmp_path: Path) -> None:
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


def test_run_report_is_written_into_the_run(results: list[Path]) -> None:
    write_run(Path("runs/[red]one[/]"))
    status, text, _ = run("runs/[red]one[/]")
    assert status == 0
    assert text.splitlines()[:2] == [
        "mobilenet_v2, 3 classes",
        "Validation accuracy: 83.3% of 30 images (95% interval 66.4% to 92.7%).",
    ]
    assert len(text.splitlines()) < 10
    assert "<!doctype html>" in Path("runs/[red]one[/]/report.html").read_text(encoding="utf-8")
    assert not Path("report.html").exists()
    assert run("runs/[red]one[/]", "-o", "elsewhere.html")[0] == 0
    assert Path("elsewhere.html").exists()


def test_run_json_contains_metrics_and_results(results: list[Path]) -> None:
    run_directory = write_run(Path("runs/one"))
    run_directory.bench.mkdir()
    results[0].rename(run_directory.bench / "a.json")
    status, text, _ = run(run_directory.path, "--json")
    content = json.loads(text)
    assert status == 0
    assert (content["schema"], content["kind"], content["page"]) == (
        1,
        "report",
        "runs/one/report.html",
    )
    assert content["run"]["metrics"]["val"]["images"] == 30
    assert content["run"]["kept_epoch"] == 6
    assert len(content["results"]) == 1
    assert "All latencies" in run_directory.report.read_text(encoding="utf-8")


def test_unfinished_run_is_reported(results: list[Path]) -> None:
    run_directory = write_run(Path("runs/one"), finished=False)
    status, text, _ = run(run_directory.path)
    assert status == 0
    assert "Not finished: metrics.json not found" in text
    assert json.loads(run(run_directory.path, "--json")[1])["run"]["metrics"] is None


def test_several_runs_show_their_bench_results(results: list[Path]) -> None:
    for number, result in enumerate(results):
        run_directory = write_run(Path(f"runs/{number}"))
        run_directory.bench.mkdir()
        result.rename(run_directory.bench / "a.json")
    status, text, _ = run("runs/0", "runs/1")
    assert status == 0
    assert text.count("faster") == 2
    assert Path("report.html").exists()
    write_run(Path("runs/2"))
    assert "No bench results in runs/2" in str(failure("runs/0", "runs/2"))


def test_bundle_report_does_not_change_the_bundle(results: list[Path]) -> None:
    bundle = write_bundle(Path("bundle"))
    before = sorted(bundle.path.rglob("*"))
    status, text, _ = run(bundle.path)
    assert status == 0
    assert "Recommended: int8 (int8.onnx, 2.5 MB), of 2 variants." in text
    assert "Bundle of mobilenet_v2" in Path("report.html").read_text(encoding="utf-8")
    assert sorted(bundle.path.rglob("*")) == before, (
        "bundles are copied to devices and must not change"
    )
    content = json.loads(run(bundle.path, "--json")[1])
    assert content["bundle"]["variants"][1]["accuracy"]["top1"] == 0.8
    assert content["bundle"]["files"]["int8.onnx"] == "as proven"
    assert "cannot share a page" in str(failure(bundle.path, results[0]))


def test_broken_runs_and_bundles_are_rejected(results: list[Path]) -> None:
    run_directory, bundle = write_run(Path("runs/one")), write_bundle(Path("bundle"))
    run_directory.metrics.write_text('{"schema": 7}', encoding="utf-8")
    assert "schema 7" in str(failure(run_directory.path))
    run_directory.metrics.write_text("[", encoding="utf-8")
    assert "not valid JSON" in str(failure(run_directory.path))
    bundle.manifest.write_text('{"schema": 1}', encoding="utf-8")
    assert "bundle.json is broken" in str(failure(bundle.path))
    assert not Path("report.html").exists()
    assert not run_directory.report.exists()


def failure(*arguments: object) -> EdgetlError:
    status, _, error = run(*arguments)
    assert status != 0
    assert isinstance(error, BenchError | ConfigError | RunError | BundleError)
    assert "\n" not in str(error)
    return error


def test_runtimes_of_a_device_are_compared_across_results(results: list[Path]) -> None:
    paths = [Path("results", name) for name in ("plain.json", "openvino.json")]
    refused = GateResult(checked=True, passed=False, reason="logits differ by [3]")
    rows = (
        bench_row("openvino", "openvino-int8", 3.0, accuracy=accuracy(0.914)),
        bench_row("litert", "litert-int8", 3.0, rounds=0, gate=refused),
    )
    write_result(bench_result((bench_row("onnxruntime", "fp32", 7.5),)), paths[0])
    write_result(bench_result(rows), paths[1])
    status, text, _ = run(*paths)
    assert status == 0
    assert "over onnxruntime fp32 [95%]" in text
    assert re.search(r"onnxruntime fp32, .*baseline", text)
    assert re.search(r"openvino-int8, .* 91\.4% +2\.5\d× \[2\.\d\d, 2\.\d\d\] +faster", text)
    assert "litert-int8: logits differ by [3]" in text
    assert status == run(*paths, "-o", "latency.md")[0]
    assert "| 2.5" in Path("latency.md").read_text(encoding="utf-8")
