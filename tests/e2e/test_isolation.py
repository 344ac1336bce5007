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
from tests.helpers.openvino_bundles import openvino_bundle

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


def without_packages(folder: Path, *names: str) -> dict[str, str]:
    """Return an environment in which this Python and those that it starts lack packages."""
    code = f"import sys\nsys.modules.update(dict.fromkeys({names!r}))\n"
    (folder / "sitecustomize.py").write_text(code)
    search_path = [str(folder), str(ROOT)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(search_path)}


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", "{bundle}"),
        ("predict", "{bundle}", "{bundle}/golden", "--runtime", "openvino"),
        ("bench", "{bundle}", "--runtime", "openvino", "--variant", "openvino-fp32"),
        ("doctor",),
    ],
    ids=lambda arguments: arguments[0],
)
def test_command_needs_only_the_runtime_that_it_runs(
    tmp_path_factory: pytest.TempPathFactory,
    random_weights: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
) -> None:
    pytest.importorskip("openvino")
    bundle = openvino_bundle(tmp_path_factory, random_weights)
    environment = without_packages(tmp_path, "torch", "torchvision", "onnx", "onnxruntime")
    command = [text.format(bundle=bundle) for text in arguments]
    if command[0] == "bench":
        command += ["--rounds", "2", "--scope", "model", "-o", str(tmp_path / "result.json")]
    process = subprocess.run(
        [sys.executable, "-m", "edgetl", *command, "--json"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)


def test_missing_runtime_error_names_the_installed_ones(stock_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    process = subprocess.run(
        [sys.executable, "-m", "edgetl", "predict", stock_bundle, stock_bundle / "golden"],
        capture_output=True,
        text=True,
        env=without_packages(tmp_path, "onnxruntime"),
        timeout=120,
    )
    assert process.returncode == 1
    assert 'pip install "edgetl[cpu]"' in process.stderr
    assert "Installed runtimes: openvino" in process.stderr


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
