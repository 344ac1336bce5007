"""Comparison with a plain script, on stub programs with known time and accuracy."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.benchmarks.finetune_speed import main, summarize, summarize_over_seeds, table

REFERENCE = """
import json, sys, time
from pathlib import Path
log = Path(__file__).with_name("log.jsonl")
seed = int(sys.argv[sys.argv.index("--seed") + 1])
with log.open("a") as stream:
    print(json.dumps({"program": "reference", "seed": seed, "arguments": sys.argv[1:3]}), file=stream)
time.sleep(0.4)
print("epoch 0")
print(json.dumps({"seconds": 0.4, "val_accuracy": 0.5 + seed / 100}))
"""

EDGETL = """
import json, os, sys, time
from pathlib import Path
log = Path(__file__).with_name("log.jsonl")
def option(name):
    return sys.argv[sys.argv.index(name) + 1]
cache, output, seed = Path(os.environ["EDGETL_CACHE"]), Path(option("-o")), int(option("--seed"))
cached = sorted(entry.name for entry in cache.iterdir())
with log.open("a") as stream:
    entry = {"program": "edgetl", "seed": seed, "cache": str(cache), "cached": cached,
             "output": str(output), "arguments": sys.argv[1:]}
    print(json.dumps(entry), file=stream)
(cache / "features").write_bytes(bytes(1000))
time.sleep(0.05 if cached else 0.2)
output.mkdir()
epochs = [(1, 0.4), (1, 0.6), (1, 0.5), (2, 0.55), (2, 0.7)]
lines = [json.dumps({"phase": phase, "val_accuracy": accuracy + seed / 100}) for phase, accuracy in epochs]
(output / "history.jsonl").write_text("\\n".join(lines) + "\\n")
(output / "metrics.json").write_text(json.dumps({"val": {"accuracy": 0.7 + seed / 100}}))
time.sleep(0.15)
"""


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    (tmp_path / "data").mkdir()
    (tmp_path / "w.safetensors").write_bytes(b"weights")
    (tmp_path / "plain.py").write_text(REFERENCE)
    (tmp_path / "stub.py").write_text(EDGETL)
    reference = str(tmp_path / "plain.py")
    stub = shlex.join([sys.executable, str(tmp_path / "stub.py")])
    return [
        str(tmp_path / "data"),
        str(tmp_path / "w.safetensors"),
        "--reference",
        reference,
        "--edgetl",
        stub,
    ]


def calls(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]


def test_result_has_order_caches_ratios_and_accuracies(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(
        [
            *arguments,
            "--runs",
            "2",
            "--options",
            "--workers 2",
            "-o",
            str(tmp_path / "out/result.json"),
        ]
    )

    log = calls(tmp_path)
    assert [(call["program"], call["seed"]) for call in log] == [
        (name, run) for run in (0, 1) for name in ("reference", "edgetl", "edgetl")
    ]
    assert log[0]["arguments"] == arguments[:2]
    _, cold0, warm0, _, cold1, warm1 = log
    assert cold0["arguments"][:4] == ["finetune", arguments[0], "--weights", arguments[1]]
    assert cold0["arguments"][-2:] == ["--workers", "2"]
    assert [call["cached"] for call in (cold0, warm0, cold1, warm1)] == [
        [],
        ["features"],
        [],
        ["features"],
    ]
    assert cold0["cache"] == warm0["cache"]
    assert cold1["cache"] == warm1["cache"]
    assert cold0["cache"] != cold1["cache"]
    assert len({call["output"] for call in (cold0, warm0, cold1, warm1)}) == 4
    assert not any(
        Path(call[kind]).exists() for call in (cold0, warm1) for kind in ("cache", "output")
    )

    result = json.loads((tmp_path / "out/result.json").read_text())
    assert (result["schema"], result["kind"]) == (1, "finetune-comparison")
    assert result["machine"]["cores"]
    assert {"python", "cpu"} <= result["machine"].keys()
    assert {"torch", "torchvision"} <= result["machine"]["packages"].keys()
    for run in result["runs"]:
        assert run["reference"]["seconds"] >= 0.4
        for name, minimum in (("cold", 0.2), ("warm", 0.05)):
            row = run[name]
            # File times may come from a clock with a resolution of a few milliseconds.
            assert minimum - 0.02 <= row["seconds_to_metrics"] <= row["seconds"] - 0.1
            assert row["peak_bytes"] > 2**20
            assert row["best_of_phase"] == {
                "1": pytest.approx(0.6 + run["seed"] / 100),
                "2": pytest.approx(0.7 + run["seed"] / 100),
            }
        assert run["cold"]["cache_bytes"] == 1000
    for name in ("cold", "warm"):
        ratios = sorted(
            run["reference"]["seconds"] / run[name]["seconds"] for run in result["runs"]
        )
        summary = result["summary"][name]
        assert summary["ratio"] == {
            "median": pytest.approx(sum(ratios) / 2),
            "min": ratios[0],
            "max": ratios[1],
        }
        assert summary["points"] == {key: pytest.approx(20) for key in ("mean", "min", "max")}
        assert summary["val_accuracy"]["mean"] == pytest.approx(0.705)
    assert result["summary"]["reference"]["val_accuracy"]["mean"] == pytest.approx(0.505)

    printed = capsys.readouterr()
    assert "edgetl, warm cache" in printed.out
    assert "+20.00" in printed.out
    assert "run 2 of 2: reference " in printed.err


def test_no_warm_runs_and_fewer_seeds_than_runs(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*arguments, "--runs", "2", "--seeds", "1", "--no-warm"])
    assert [(call["program"], call["seed"]) for call in calls(tmp_path)] == [
        ("reference", 0),
        ("edgetl", 0),
    ] * 2
    printed = capsys.readouterr().out
    assert "Runs: 2, seeds: 1." in printed
    assert "warm" not in printed


def test_summary_over_seeds_weights_seeds_equally() -> None:
    runs = [{"seed": 0}, {"seed": 1}, {"seed": 0}]
    assert summarize_over_seeds(runs, [0.2, 0.8, 0.4]) == {
        "mean": pytest.approx(0.55),
        "min": pytest.approx(0.3),
        "max": 0.8,
    }
    assert summarize_over_seeds(runs, [None, None, None]) is None


def test_phase_without_epochs_has_no_best_accuracy() -> None:
    row = {
        "seconds": 2.0,
        "seconds_to_metrics": 1.5,
        "peak_bytes": 2**20,
        "val_accuracy": 0.5,
        "best_of_phase": {"1": 0.5, "2": None},
    }
    runs = [
        {
            "seed": 0,
            "reference": {"seconds": 4.0, "peak_bytes": 2**20, "val_accuracy": 0.5},
            "cold": row,
        }
    ]
    summary = summarize(runs)
    assert summary["cold"]["ratio"] == {"median": 2, "min": 2, "max": 2}
    assert summary["cold"]["best_of_phase"]["2"] is None
    assert [
        line.split()[-1]
        for line in table(summary, runs).splitlines()
        if line.startswith("best of phase")
    ] == ["50.00", "-"]


@pytest.mark.parametrize("program", ["plain.py", "stub.py"])
def test_tool_exits_with_stderr_of_failed_program(
    arguments: list[str], tmp_path: Path, program: str
) -> None:
    (tmp_path / program).write_text(
        "import sys\nfor line in range(100): print('line', line, file=sys.stderr)\nsys.exit('out of memory')\n"
    )
    with pytest.raises(SystemExit) as exit_info:
        main([*arguments, "--runs", "1", "-o", str(tmp_path / "result.json")])
    # Python prints the message and exits with status 1.
    message = str(exit_info.value.code)
    assert program in message
    assert "failed with exit status 1" in message
    assert message.endswith("line 99\nout of memory")
    assert "line 10\n" not in message
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(
    ("program", "text", "message"),
    [
        (
            "plain.py",
            "print('no figures')",
            "val_accuracy as its last line, but printed:\nno figures",
        ),
        ("plain.py", "", "val_accuracy as its last line"),
        ("stub.py", "", "FileNotFoundError"),
        ("stub.py", EDGETL.replace('{"accuracy": 0.7 + seed / 100}', "None"), "TypeError"),
    ],
)
def test_tool_exits_when_program_reports_no_result(
    arguments: list[str], tmp_path: Path, program: str, text: str, message: str
) -> None:
    (tmp_path / program).write_text(text)
    with pytest.raises(SystemExit, match=message):
        main([*arguments, "--runs", "1"])


def test_output_file_keeps_runs_before_a_failure(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(
        REFERENCE.replace("time.sleep(0.4)", "sys.exit('broke') if seed else None")
    )
    with pytest.raises(SystemExit, match="broke"):
        main([*arguments, "--runs", "2", "-o", str(tmp_path / "result.json")])
    assert len(json.loads((tmp_path / "result.json").read_text())["runs"]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--runs", "0"], "--runs must be >= 1"),
        (["--runs", "1", "--seeds", "2"], "--seeds between 1 and --runs"),
        (["--reference", "nowhere.py"], "nowhere.py not found"),
    ],
)
def test_invalid_options_are_refused(
    arguments: list[str], options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main([*arguments, *options])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
