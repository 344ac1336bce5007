"""What may be loaded where: help loads nothing heavy, and the device commands work where torch cannot be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgetl.cli.app import COMMANDS
from tests.conftest import ROOT

HEAVY = (
    "numpy",
    "PIL",
    "torch",
    "torchvision",
    "onnxruntime",
    "onnx",
    "albumentations",
    "cv2",
    "matplotlib",
    "safetensors",
)


BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(f"blocked: {{name}}")
sys.meta_path.insert(0, Blocker())
"""


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_loads_nothing_heavy(command: str) -> None:
    code = f"""
import sys
sys.argv = ["edgetl", *{command.split()!r}, "--help"]
from edgetl.cli.app import create_app
try:
    create_app(sys.argv[1])()
except SystemExit as done:
    assert done.code == 0
print("loaded:", sorted(name for name in {HEAVY!r} if name in sys.modules))
"""
    done = python(code)
    assert done.stdout.splitlines()[-1] == "loaded: []", done.stderr
    assert "Usage: " in done.stdout


def test_device_packages_without_the_training_stack(stock_bundle: Path, parts: Path) -> None:
    """predict in an interpreter where torch and its company cannot be imported."""
    blocked = (
        "torch",
        "torchvision",
        "albumentations",
        "cv2",
        "onnx",
        "onnxscript",
        "safetensors",
        "matplotlib",
        "scipy",
    )
    code = BLOCKER.format(blocked=blocked) + "from edgetl.cli.app import main\nmain()\n"
    done = python(code, "predict", stock_bundle, parts / "val/good", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["images"]) == 4


def test_a_missing_package_is_a_sentence_with_the_command(parts: Path) -> None:
    code = BLOCKER.replace("ImportError(", "ModuleNotFoundError(").replace(
        '{{name}}")', '{{name}}", name=name)'
    )
    done = python(
        code.format(blocked=("torch",)) + "from edgetl.cli.app import main\nmain()\n",
        "finetune",
        parts,
        "--weights",
        "none",
    )
    assert done.returncode == 1
    assert 'pip install "edgetl[train]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_exit_statuses() -> None:
    assert python("from edgetl.cli.app import main\nmain()", "--version").returncode == 0
    assert python("from edgetl.cli.app import main\nmain()", "nonsense").returncode == 2
    broken = "def broken(): 1 / 0\nwhole = a.create_app()\nwhole.command()(broken)\na.create_app = lambda asked: whole\n"
    bug = python(f"import edgetl.cli.app as a\n{broken}a.main()", "broken")
    assert bug.returncode == 3
    assert "ZeroDivisionError" in bug.stderr
    assert "bug in edgetl" in bug.stderr
