"""The table of a backbone's worth, from made-up runs: real ones are the experiment's, which has its own tests."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from edgetl.core.artifacts.experiment_runs import StrategyResult, StrategyRun
from edgetl.core.builtin_weights import CARD_FILE
from edgetl.core.config.compare import CompareConfig
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import ConfigError
from edgetl.core.files import write_json
from edgetl.core.paired_tests import compute_accuracy_difference
from edgetl.experiment import compare as comparing
from edgetl.experiment.matrix import NetworkSpec, PlannedRun
from edgetl.experiment.progress import ExperimentProgress
from tools.benchmarks.backbone_gain import Backbone, Line, main, table


def row(strategy: str, *answers: str) -> StrategyResult:
    runs = [StrategyRun(f"{strategy}-{seed}", strategy, "net", 224, strategy, seed, "", seconds=61.0, train_images=40, correct=correct)
            for seed, correct in enumerate(answers)]  # fmt: skip
    return StrategyResult(strategy, tuple(runs))


def test_the_table_has_gains_over_random_weights_and_no_machine_s_folders() -> None:
    scratch, probe = row("scratch", "1100" * 5, "1000" * 5), row("head", "1110" * 5, "1110" * 5)
    gain = compute_accuracy_difference(
        [run.correct_mask for run in probe.runs], [run.correct_mask for run in scratch.runs]
    )
    lines = [
        Line(Backbone("net", "random"), scratch, None),
        Line(Backbone("net", "/home/somebody/w.safetensors"), probe, gain),
    ]
    text = table("flowers", lines, 60.0, "python -m tools.benchmarks.backbone_gain flowers")
    assert "### flowers" in text
    assert "40 training and 20 validation images; means of 2 seeds" in text
    assert "| net | random | everything, from nothing | 37.5% | 25.0% to 50.0% |  |" in text
    assert "| net | w.safetensors | linear probe | 75.0% | 75.0% to 75.0% | +37.5 [" in text
    assert "somebody" not in text


@pytest.mark.parametrize("text", ["net", "net=", "=w", "net=none"])
def test_rows_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="write ARCHITECTURE=WEIGHTS"):
        Backbone.parse(text)


def test_an_experiment_for_each_row_ends_in_a_table_and_in_the_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[CompareConfig, FinetuneConfig]] = []

    def compare(
        settings: CompareConfig, recipe: FinetuneConfig, watcher: ExperimentProgress
    ) -> SimpleNamespace:
        asked.append((settings, recipe))
        answers = {
            "scratch": "1000" * 5,
            "head": "1100" * 5,
            "finetune": "1110" * 5,
            "full": "1111" * 5,
        }
        rows = [row(strategy, answers[strategy]) for strategy in settings.expanded_strategies]
        watcher.on_run_end(
            PlannedRun(NetworkSpec("net", 32, 1), "head", 0, recipe), rows[0].first_run
        )
        return SimpleNamespace(rows=rows, failed_runs=[])

    monkeypatch.setattr(comparing, "compare", compare)
    card = tmp_path / "net-builtin"
    card.mkdir()
    (card / "weights.safetensors").write_bytes(b"w")
    (card / "recipe.toml").write_text("steps = 1\n")
    results = {"model": "net", "steps": 1, "images_seen": 1, "images_drawn": 1, "classes": 2, "seconds": 1.0, "device": "cpu",
               "precision": "fp32", "versions": {}, "unseen_accuracy": {}, "curve": [], "worth": {"older": "older table"}}  # fmt: skip
    write_json(card / "results.json", results)
    rows = ["--row", "net=builtin", "--row", "net=/w/net.safetensors", "--row", "wide=imagenet"]
    longer = ["--scratch-budget", "3m"]
    main(
        [
            str(tmp_path / "photos"),
            *rows,
            *longer,
            "--budget",
            "30s",
            "--image-size",
            "32",
            "-o",
            str(tmp_path / "out"),
            "--card",
            str(card),
        ]
    )
    assert [
        (settings.models, settings.strategies, recipe.weights) for settings, recipe in asked
    ] == [
        (("net",), ("scratch", "head", "finetune", "full"), "builtin"),
        (("net",), ("head", "finetune", "full"), "/w/net.safetensors"),
        (("wide",), ("scratch", "head", "finetune", "full"), "imagenet"),
        (("net",), ("scratch",), "builtin"),
    ]
    assert [settings.budget_s for settings, _ in asked] == [30.0, 30.0, 30.0, 180.0]
    assert {(settings.seeds, settings.image_sizes, settings.bench) for settings, _ in asked} == {
        (3, (32,), False)
    }
    assert len({settings.output for settings, _ in asked}) == 4
    printed = capsys.readouterr()
    lines = [
        line.split(" | ")
        for line in printed.out.splitlines()
        if line.startswith(("| net", "| wide"))
    ]
    assert [(cells[1], cells[2]) for cells in lines[:5]] == [
        ("random", "everything, from nothing"), ("random", "everything, from nothing"), ("builtin", "linear probe"),
        ("builtin", "head, then last blocks"),
        ("builtin", "head, then everything"),
    ]  # fmt: skip
    assert len(lines) == 12
    assert lines[4][5].startswith("+75.0 [")
    assert "the second row is the first in 3 min" in printed.out
    assert printed.err.count("net-32-head-s0: ") == 4
    text = (card / CARD_FILE).read_text()
    assert "older table" in text
    assert " | ".join(lines[4]) in text


def test_a_failed_run_ends_the_tool_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = StrategyRun(
        "net-head-s0", "net-head", "net", 32, "head", 0, "", failed="out of memory"
    )
    monkeypatch.setattr(
        comparing, "compare", lambda *_: SimpleNamespace(rows=[], failed_runs=[failed])
    )
    with pytest.raises(SystemExit, match="net-head-s0 failed: out of memory"):
        main([str(tmp_path), "--row", "net=builtin", "-o", str(tmp_path / "out")])
