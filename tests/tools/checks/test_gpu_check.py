"""Runner of the GPU check, with fake steps in real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tools.checks.gpu_check import __main__ as command
from tools.checks.gpu_check.report import write_report
from tools.checks.gpu_check.runner import Step, StepResult, run_steps
from tools.checks.gpu_check.settings import Settings
from tools.checks.gpu_check.steps import BUDGET_S, LIMIT_SUM_S, STEPS, choose_steps
from tools.checks.gpu_check.wheels import ROOT, install_wheels, step_variables


def fake(name: str, limit_s: float = 30, needs: tuple[str, ...] = ()) -> Step:
    function = f"tests.helpers.gpu_check_fakes:{name}"
    return Step(name, f"a step that is {name}", limit_s, function, needs)


def run(tmp_path: Path, *steps: Step, budget_s: float = 100) -> list[StepResult]:
    Settings(tmp_path).write(tmp_path / "settings.json")
    variables = step_variables(tmp_path, None)
    deadline = time.monotonic() + budget_s

    def report(results: Any) -> None:
        write_report(
            tmp_path,
            {name: name for name in ("created", "edgetl", "device", "note")},
            steps,
            results,
        )

    return run_steps(steps, tmp_path / "settings.json", tmp_path, deadline, variables, report)


def has_exited(pid_file: Path) -> bool:
    """Return whether the process is dead or a zombie, after waiting for up to 5 s."""
    stat = Path(f"/proc/{pid_file.read_text()}/stat")
    for _ in range(50):
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


def test_step_passes_with_its_figures(tmp_path: Path) -> None:
    (result,) = run(tmp_path, fake("passing"))
    assert (result.status, result.figures, result.reason) == ("passed", {"answer": 42}, "")
    assert result.requirements == [{"text": "the answer is 42", "passed": True, "detail": "42"}]


def test_next_step_runs_after_failed_requirement(tmp_path: Path) -> None:
    first, second = run(tmp_path, fake("failing"), fake("passing"))
    assert (first.status, first.reason) == ("failed", "the answer is 42")
    assert [entry["passed"] for entry in first.requirements] == [False, True]
    assert second.status == "passed"


def test_step_that_raises_keeps_its_last_output_lines(tmp_path: Path) -> None:
    (result,) = run(tmp_path, fake("raising"))
    assert result.status == "error"
    assert result.log[-1] == "RuntimeError: no such kernel"


def test_step_that_checks_nothing_does_not_pass(tmp_path: Path) -> None:
    (result,) = run(tmp_path, fake("silent"))
    assert (result.status, result.reason) == ("error", "it checked nothing")


def test_step_is_killed_with_children_at_its_limit(tmp_path: Path) -> None:
    first, second = run(tmp_path, fake("hanging", limit_s=4), fake("passing"))
    assert (first.status, first.figures) == ("timed out", {"answer": 42})
    assert 4 <= first.seconds < 8
    assert has_exited(tmp_path / "child")
    assert second.status == "passed"


def test_leftover_children_are_killed(tmp_path: Path) -> None:
    (result,) = run(tmp_path, fake("leaving"))
    assert result.status == "passed"
    assert has_exited(tmp_path / "child")


def test_step_is_skipped_when_its_limit_does_not_fit(tmp_path: Path) -> None:
    first, second = run(
        tmp_path, fake("passing", limit_s=20), fake("failing", limit_s=25), budget_s=24
    )
    assert (first.status, second.status) == ("passed", "skipped")
    assert second.reason.startswith("its limit of 25 s does not fit into the")


def test_step_is_skipped_when_needed_step_errors(tmp_path: Path) -> None:
    _, second = run(tmp_path, fake("raising"), fake("passing", needs=("raising",)))
    assert (second.status, second.reason) == ("skipped", "it needs raising, which did not finish")


def test_step_runs_when_needed_step_failed_a_requirement(tmp_path: Path) -> None:
    first, second = run(tmp_path, fake("failing"), fake("passing", needs=("failing",)))
    assert (first.status, second.status) == ("failed", "passed")


def test_results_are_written_after_each_step(tmp_path: Path) -> None:
    reports: list[tuple[int, list[str]]] = []
    steps = (fake("passing"), fake("failing"))
    Settings(tmp_path).write(tmp_path / "settings.json")
    metadata = {name: name for name in ("created", "edgetl", "device", "note")}

    def report(results: Any) -> None:
        write_report(tmp_path, metadata, steps, results)
        content = json.loads((tmp_path / "result.json").read_text())
        reports.append((len(content["steps"]), content["not_run"]))

    variables = step_variables(tmp_path, None)
    run_steps(
        steps, tmp_path / "settings.json", tmp_path, time.monotonic() + 100, variables, report
    )
    assert reports == [(0, ["passing", "failing"]), (1, ["failing"]), (2, [])]
    page = (tmp_path / "result.md").read_text()
    assert "| passing | passed |" in page
    assert "- FAILED: the answer is 42 (41)" in page
    assert "| answer | 41 |" in page


def test_step_limits_fit_into_nine_minutes() -> None:
    assert sum(step.limit_s for step in STEPS) <= LIMIT_SUM_S == 8.5 * 60
    assert BUDGET_S < 9 * 60


def test_only_includes_needed_steps() -> None:
    assert [step.name for step in choose_steps(["placement"])] == ["photos", "bundles", "placement"]
    with pytest.raises(ValueError, match=r"Unknown step: speed\. Choose from environment, "):
        choose_steps(["speed"])


def test_list_shows_every_step_with_its_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[:-1]] == [
        [step.name, f"{step.limit_s:g}", "s"] for step in STEPS
    ]


def test_check_reports_missing_gpu(tmp_path: Path) -> None:
    variables = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    check = [sys.executable, "-m", "tools.checks.gpu_check", "-o", str(tmp_path / "out")]
    process = subprocess.run(check, capture_output=True, text=True, env=variables, cwd=ROOT)
    assert (process.returncode, process.stderr) == (1, "")
    message = "No GPU found: PyTorch sees no CUDA device. Nothing was checked.\n"
    assert process.stdout == message
    assert not (tmp_path / "out").exists()


def test_exit_status_is_1_when_a_step_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for steps, status in (([fake("passing")], 0), ([fake("passing"), fake("failing")], 1)):
        monkeypatch.setattr(command, "choose_steps", lambda _names, steps=steps: steps)
        assert command.main(["--rehearsal", "-o", str(tmp_path / str(status))]) == status


def test_wheels_are_installed_without_an_index(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no \.whl file found"):
        install_wheels(tmp_path, tmp_path / "site")
    (tmp_path / "broken-1-py3-none-any.whl").write_bytes(b"no archive")
    with pytest.raises(SystemExit, match="pip cannot install them"):
        install_wheels(tmp_path, tmp_path / "site")
    variables = step_variables(tmp_path, tmp_path / "site")
    assert variables["PYTHONPATH"].split(os.pathsep)[:2] == [str(tmp_path / "site"), str(ROOT)]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_rehearsal_passes_every_step(tmp_path: Path) -> None:
    check = [sys.executable, "-m", "tools.checks.gpu_check"]
    check += ["--rehearsal", "-o", str(tmp_path / "out")]
    process = subprocess.run(check, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT)
    content = json.loads((tmp_path / "out/result.json").read_text())
    reasons = {
        entry["step"]: entry["reason"] for entry in content["steps"] if entry["status"] != "passed"
    }
    assert reasons == {}
    assert process.returncode == 0
