from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgetl.cli.app import program
from edgetl.core.errors import BenchError, ConfigError, EdgetlError
from edgetl.core.results import write_result
from tests.report.benches import bench_result, bench_row, device


def run(*arguments: object) -> tuple[int, str, BaseException | None]:
    done = CliRunner().invoke(program(), ["report", *map(str, arguments)])
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
    assert "Nothing at" in str(failure("missing.json"))
    (tmp_path / "empty").mkdir()
    assert "No bench results in" in str(failure("empty"))
    Path("odd.json").write_text('{"schema": 1, "kind": "something"}', encoding="utf-8")
    assert "is no bench result" in str(failure("odd.json"))
    Path("new.json").write_text('{"schema": 2}', encoding="utf-8")
    assert "schema 2" in str(failure("new.json"))
    Path("text.json").write_text("hello", encoding="utf-8")
    assert "not valid JSON" in str(failure("text.json"))
    assert "is a folder" in str(failure(results[0], "-o", "empty"))
    assert not Path("report.html").exists()


def failure(*arguments: object) -> EdgetlError:
    status, _, error = run(*arguments)
    assert status != 0
    assert isinstance(error, BenchError | ConfigError)
    return error
