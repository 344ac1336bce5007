from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edgetl.cli.app import create_app, format_error
from edgetl.cli.candidates import show_candidates, summarize_candidates
from edgetl.core.artifacts.candidates import CandidatesResult
from edgetl.core.config.candidates import CandidatesConfig
from edgetl.core.errors import BenchError, ConfigError
from tests.helpers.candidates import candidate, result_of

Run = Callable[..., subprocess.CompletedProcess[str]]
FAST, SLOW = (
    candidate("shufflenet_v2_x1_0", [2.0] * 4, 224, 69.4),
    candidate("mobilenet_v2", [6.0] * 4, 224, 72.2),
)
EDGE = candidate("mnasnet1_0", [4.9, 5.1, 4.9, 5.1], 224, 73.5)
BROKEN = candidate(
    "inception_v3", image_size=32, failed="inception_v3 does not take images of 32 pixels."
)


def test_show_candidates_prints_table_failures_and_next_step(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_candidates(result_of(SLOW, BROKEN, EDGE, FAST, budget_ms=5.0))
    text = capsys.readouterr().out
    lines = text.splitlines()
    prefixes = ("shufflenet", "mnasnet", "mobilenet", "inception")
    rows = [line for line in lines if line.startswith(prefixes)]
    names = [line.split()[0] for line in rows]
    assert names == ["shufflenet_v2_x1_0", "mnasnet1_0", "mobilenet_v2", "inception_v3"]
    assert [line.split()[-1] for line in rows] == ["yes", "undecided", "no", "failed"]
    assert "2.00 [2.00, 2.00]" in text
    assert "Failed   inception_v3 at 32 px: inception_v3 does not take images of 32 pixels." in text
    assert "edgetl finetune DATA --model shufflenet_v2_x1_0 --image-size 224" in text


def test_summary_matches_the_measurements() -> None:
    assert "Within 5 ms: shufflenet_v2_x1_0 at 224 px (2.00 ms)." in summarize_candidates(
        result_of(SLOW, EDGE, FAST, budget_ms=5.0)
    )
    assert "Undecided: mnasnet1_0 at 224 px" in summarize_candidates(
        result_of(SLOW, EDGE, FAST, budget_ms=5.0)
    )
    assert "widened" not in summarize_candidates(result_of(EDGE, budget_ms=5.0))
    assert "widened by the spread of the rounds" in summarize_candidates(
        result_of(EDGE, budget_ms=5.0, reasons=("steal",))
    )
    no_fit = summarize_candidates(result_of(SLOW, FAST, budget_ms=1.0))
    assert (
        "No candidate is certainly within 1 ms; the closest is shufflenet_v2_x1_0 at 224 px (2.00 ms)."
        in no_fit
    )
    assert "edgetl finetune" not in no_fit
    assert "The fastest is shufflenet_v2_x1_0" in summarize_candidates(result_of(SLOW, FAST))
    small = candidate("mobilenet_v2", [3.0] * 4, 160, 72.2)
    summary = summarize_candidates(result_of(small, FAST, budget_ms=5.0))
    assert summary.count("edgetl finetune DATA") == 2
    assert "train each to compare" in summary
    assert summarize_candidates(result_of(BROKEN)) == "Nothing was timed."


def test_table_has_no_fits_column_without_budget(capsys: pytest.CaptureFixture[str]) -> None:
    show_candidates(result_of(SLOW, FAST))
    assert "fits" not in capsys.readouterr().out.partition("Result")[0]


@pytest.mark.slow
def test_architectures_are_timed_without_training(edgetl: Run, tmp_path: Path) -> None:
    sizes = ("--image-size", "32,64", "--classes", "3", "--rounds", "2", "--latency-budget", "10s")
    process = edgetl("candidates", "squeezenet1_1", *sizes, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "edgetl finetune DATA --model squeezenet1_1 --image-size 64" in process.stdout
    (result_path,) = (tmp_path / "bench").iterdir()
    assert json.loads(result_path.read_text())["kind"] == "candidates"
    misspelled = edgetl("candidates", "squeezenet1_1,mobilnet_v2", cwd=tmp_path)
    assert misspelled.returncode == 1
    assert "Did you mean mobilenet_v2" in " ".join(misspelled.stderr.split())


def test_command_builds_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgetl.export import candidates

    configs: list[CandidatesConfig] = []

    def time_candidates(config: CandidatesConfig, _progress: Any) -> CandidatesResult:
        configs.append(config)
        return result_of(FAST if len(configs) == 1 else BROKEN, budget_ms=config.latency_budget_ms)

    monkeypatch.setattr(candidates, "time_candidates", time_candidates)
    names = ["mobilenet_v2, resnet18", "vgg11"]
    sizes = ["--classes", "4", "--image-size", "96,128"]
    timing = ["--latency-budget", "800us", "--threads", "1", "--rounds", "3"]
    result = CliRunner().invoke(
        create_app("candidates"),
        ["candidates", *names, *sizes, *timing, "-o", "result.json", "--json"],
    )
    assert result.exit_code == 0, result.output
    assert configs == [
        CandidatesConfig(
            ("mobilenet_v2", "resnet18", "vgg11"),
            4,
            (96, 128),
            0.8,
            1,
            "cpu",
            3,
            Path("result.json"),
        ),
    ]
    assert json.loads(result.stdout)["kind"] == "candidates"
    failed = CliRunner().invoke(create_app("candidates"), ["candidates", "inception_v3"])
    assert isinstance(failed.exception, BenchError)
    assert "No candidate could be timed" in str(failed.exception)
    invalid = CliRunner().invoke(
        create_app("candidates"), ["candidates", "vgg11", "--image-size", "160,big"]
    )
    assert isinstance(invalid.exception, ConfigError)
    assert "--image-size: must be integers" in format_error(invalid.exception)
