"""The script of docs/guide/custom-models.md runs the whole job, in Python and by the commands."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

Run = Callable[..., subprocess.CompletedProcess[str]]
GUIDE = ROOT / "docs/guide/custom-models.md"


@pytest.fixture
def project(tmp_path: Path, parts: Path) -> Path:
    """Return a folder with small_net.py from the guide and with photos."""
    (script,) = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text("utf-8"), re.M | re.S)
    folder = tmp_path / "project"
    shutil.copytree(parts, folder / "photos")
    (folder / "small_net.py").write_text(script, encoding="utf-8")
    return folder


def check_run(run: Path, project: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    assert config["config"]["model"] == "small_net:build"
    assert config["code"]["root"] == str(project)
    assert list(config["code"]["files"]) == ["small_net.py"]
    bundle = json.loads((run / "bundle/bundle.json").read_text())
    (variant,) = bundle["variants"]
    assert variant["parity"]["network"]["max_abs_diff"] <= 1e-3
    assert len(bundle["labels"]) == 5
    (file,) = (run / "bench").iterdir()
    assert {row["runtime"] for row in json.loads(file.read_text())["rows"]} == {
        "onnxruntime",
        "pytorch",
    }


def test_script_of_the_guide_runs_the_job(project: Path) -> None:
    process = subprocess.run(
        [sys.executable, "small_net.py"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert "onnxruntime" in process.stdout
    check_run(project / "runs/small", project)


@pytest.mark.slow
def test_commands_of_the_guide_run_the_job(edgetl: Run, forked: Run, project: Path) -> None:
    options = ("--weights", "none", "--image-size", 64, "--epochs", 1, "--finetune-epochs", 0)
    process = edgetl(
        "finetune", "photos", "--model", "small_net:build", *options, "-o", "runs/small",
        cwd=project,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    path = project / "runs/small"
    # The other commands run in another folder.
    for command in (("export", path), ("bench", path, "--scope", "model", "--rounds", 2)):
        process = forked(*command)
        assert process.returncode == 0, process.stderr
    check_run(path, project)
    with (project / "small_net.py").open("a", encoding="utf-8") as stream:
        stream.write("# changed\n")
    process = forked("export", path, "--force")
    assert process.returncode == 1
    assert process.stderr.endswith(
        "Error: The code of the model was changed after training: small_net.py. "
        "Restore it, or run finetune again.\n"
    )
