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


def test_the_table_the_reasons_and_the_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    show_candidates(result_of(SLOW, BROKEN, EDGE, FAST, budget_ms=5.0))
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    names = [
        line.split()[0]
        for line in lines
        if line.startswith(("shufflenet", "mnasnet", "mobilenet", "inception"))
    ]
    assert names == ["shufflenet_v2_x1_0", "mnasnet1_0", "mobilenet_v2", "inception_v3"]
    assert [line.split()[-1] for line in lines if line.startswith(("shufflenet", "mnasnet", "mobilenet", "inception"))] == [
        "yes", "decided", "no", "failed",
    ]  # fmt: skip
    assert "2.00 [2.00, 2.00]" in shown
    assert (
        "Failed   inception_v3 at 32 px: inception_v3 does not take images of 32 pixels." in shown
    )
    assert "edgetl finetune DATA --model shufflenet_v2_x1_0 --image-size 224" in shown


def test_the_conclusion_says_no_more_than_the_figures() -> None:
    assert "Within 5 ms: shufflenet_v2_x1_0 at 224 px (2.00 ms)." in summarize_candidates(
        result_of(SLOW, EDGE, FAST, budget_ms=5.0)
    )
    assert "Not decided: mnasnet1_0 at 224 px" in summarize_candidates(
        result_of(SLOW, EDGE, FAST, budget_ms=5.0)
    )
    assert "widened" not in summarize_candidates(result_of(EDGE, budget_ms=5.0))
    assert "widened by how far the rounds differ" in summarize_candidates(
        result_of(EDGE, budget_ms=5.0, reasons=("steal",))
    )
    nothing = summarize_candidates(result_of(SLOW, FAST, budget_ms=1.0))
    assert (
        "Nothing is surely within 1 ms; shufflenet_v2_x1_0 at 224 px (2.00 ms) came closest."
        in nothing
    )
    assert "edgetl finetune" not in nothing
    assert "Fastest is shufflenet_v2_x1_0" in summarize_candidates(result_of(SLOW, FAST))
    small = candidate("mobilenet_v2", [3.0] * 4, 160, 72.2)
    both = summarize_candidates(result_of(small, FAST, budget_ms=5.0))
    assert both.count("edgetl finetune DATA") == 2
    assert "only training decides" in both
    assert summarize_candidates(result_of(BROKEN)) == "Nothing was timed."


def test_without_a_budget_nothing_fits_or_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    show_candidates(result_of(SLOW, FAST))
    assert "fits" not in capsys.readouterr().out.partition("Result")[0]


def test_sizes_are_whole_numbers() -> None:
    assert parse_image_sizes(" 160, 224,") == (160, 224)
    assert parse_image_sizes("") == ()
    with pytest.raises(ConfigError, match=r"not 'big', '1\.5'"):
        parse_image_sizes("160,big,1.5")


def test_plain_values_become_a_configuration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgetl.export import candidates

    asked: list[CandidatesConfig] = []

    def time_candidates(config: CandidatesConfig, _progress: Any) -> CandidatesResult:
        asked.append(config)
        return result_of(FAST if len(asked) == 1 else BROKEN, budget_ms=config.latency_budget_ms)

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
    assert asked == [
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
    with pytest.raises(BenchError, match="Not one candidate could be timed"):
        run_candidates(["inception_v3"])
