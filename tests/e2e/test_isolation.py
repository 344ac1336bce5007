"""Import isolation: help is light, and device commands work without torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgetl.cli.app import COMMANDS
from edgetl.device.runtime.bundle import open_bundle
from tests.conftest import ROOT
from tests.helpers.confidence import add_confidence

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
def test_help_imports_no_heavy_package(command: str) -> None:
    code = f"""
import sys
sys.argv = ["edgetl", *{command.split()!r}, "--help"]
from edgetl.cli.app import create_app
try:
    create_app(sys.argv[1])()
except SystemExit as exit_info:
    assert exit_info.code == 0
print("loaded:", sorted(name for name in {HEAVY!r} if name in sys.modules))
"""
    process = python(code)
    assert process.stdout.splitlines()[-1] == "loaded: []", process.stderr
    assert "Usage: " in process.stdout


@pytest.mark.parametrize(
    ("arguments", "key", "count"),
    [
        (("predict", "{bundle}", "{parts}/val/good"), "images", 4),
        (
            ("evaluate", "{bundle}", "{photos}", "--unknown", "{parts}", "-o", "{photos}.json"),
            "variants",
            1,
        ),
    ],
)
def test_command_works_without_training_packages(
    stock_bundle: Path,
    parts: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    key: str,
    count: int,
) -> None:
    """Run commands in an interpreter that cannot import torch and other training packages."""
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
        "sklearn",
    )
    bundle = add_confidence(shutil.copytree(stock_bundle, tmp_path / "bundle"), threshold=0.0)
    photos = tmp_path / "photos"
    shutil.copytree(parts / "val/good", photos / open_bundle(bundle).labels[0])
    folders = {"bundle": bundle, "parts": parts, "photos": photos}
    code = BLOCKER.format(blocked=blocked) + "from edgetl.cli.app import main\nmain()\n"
    process = python(code, *(text.format(**folders) for text in arguments), "--json")
    assert process.returncode == 0, process.stderr
    assert len(json.loads(process.stdout)[key]) == count


def test_missing_package_error_names_the_pip_command(parts: Path) -> None:
    code = BLOCKER.replace("ImportError(", "ModuleNotFoundError(").replace(
        '{{name}}")', '{{name}}", name=name)'
    )
    process = python(
        code.format(blocked=("torch",)) + "from edgetl.cli.app import main\nmain()\n",
        "finetune",
        parts,
        "--weights",
        "none",
    )
    assert process.returncode == 1
    assert 'pip install "edgetl[train]"' in process.stderr
    assert "Traceback" not in process.stderr


def test_exit_statuses() -> None:
    assert python("from edgetl.cli.app import main\nmain()", "--version").returncode == 0
    assert python("from edgetl.cli.app import main\nmain()", "nonsense").returncode == 2
    broken = (
        "def broken(): 1 / 0\napp = a.create_app()\napp.command()(broken)\n"
        "a.create_app = lambda command: app\n"
    )
    bug = python(f"import edgetl.cli.app as a\n{broken}a.main()", "broken")
    assert bug.returncode == 3
    assert "ZeroDivisionError" in bug.stderr
    assert "bug in edgetl" in bug.stderr
