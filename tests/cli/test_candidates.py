from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgetl.cli.candidates import (
    parse_image_sizes,
    run_candidates,
    show_candidates,
    summarize_candidates,
)
from edgetl.core.artifacts.candidates import CandidatesResult
from edgetl.core.config.candidates import CandidatesConfig
from edgetl.core.errors import BenchError, ConfigError
from tests.helpers.candidates import candidate, result_of

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


def test_parse_image_sizes_accepts_whole_numbers_only() -> None:
    assert parse_image_sizes(" 160, 224,") == (160, 224)
    assert parse_image_sizes("") == ()
    with pytest.raises(ConfigError, match=r"got 'big', '1\.5'"):
        parse_image_sizes("160,big,1.5")


def test_run_candidates_builds_the_configuration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgetl.export import candidates

    configs: list[CandidatesConfig] = []

    def time_candidates(config: CandidatesConfig, _progress: Any) -> CandidatesResult:
        configs.append(config)
        return result_of(FAST if len(configs) == 1 else BROKEN, budget_ms=config.latency_budget_ms)

    monkeypatch.setattr(candidates, "time_candidates", time_candidates)
    run_candidates(
        ["mobilenet_v2, resnet18", "vgg11"],
        4,
        "96,128",
        "800us",
        1,
        3,
        "cpu",
        Path("result.json"),
        as_json=True,
    )
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
    assert json.loads(capsys.readouterr().out)["kind"] == "candidates"
    with pytest.raises(BenchError, match="No candidate could be timed"):
        run_candidates(["inception_v3"])
