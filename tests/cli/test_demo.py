"""`edgetl demo` in a real process, with fewer and smaller images than by default."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgetl.core.paths import BundleDirectory, RunDirectory
from edgetl.demo.demo import PAGES, choose_settings
from tests.conftest import ARCHITECTURE, ROOT

SMALL_SETTINGS = (
    "DemoSettings(train_images_per_class=6, val_images_per_class=4, generated_image_size=64, "
    f"model={ARCHITECTURE!r}, image_size=64, budget_per_run='5s', variants='fp32', rounds=2)"
)
CODE = f"""
import sys
from edgetl.demo import demo
from edgetl.demo.demo import DemoSettings
demo.DEMO_SETTINGS = {SMALL_SETTINGS}
from edgetl.cli.app import main
main()
"""
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def project(random_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run the demo and return its folder and output."""
    folder = tmp_path_factory.mktemp("demo") / "parts"
    command = [
        sys.executable,
        "-c",
        CODE,
        "demo",
        "--weights",
        str(random_weights),
        "--keep",
        str(folder),
    ]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert process.returncode == 0, process.stderr
    return folder, process.stdout


@pytest.mark.slow
def test_summary_matches_the_artifacts(project: tuple[Path, str]) -> None:
    folder, printed = project
    result = json.loads((folder / "comparison/compare.json").read_text())
    accuracies = {
        run["strategy"]: run["correct"].count("1") / len(run["correct"]) for run in result["runs"]
    }
    line = re.search(r"^validation accuracy +([\d.]+)% +([\d.]+)%", printed, re.MULTILINE)
    assert line is not None
    assert [float(value) for value in line.groups()] == [
        round(100 * accuracies[name], 1) for name in ("scratch", "full")
    ]
    assert re.search(r"^PyTorch +[\d.]+ +1 ", printed, re.MULTILINE)
    assert re.search(r"^ONNX fp32", printed, re.MULTILINE)
    assert "Done in" in printed


@pytest.mark.slow
def test_kept_folder_can_be_used_for_next_steps(project: tuple[Path, str], edgetl: Run) -> None:
    folder, printed = project
    assert all((folder / page).stat().st_size > 10_000 for page in PAGES)
    commands = re.findall(
        r"^    edgetl (\w+) (\S+)", (folder / "README.md").read_text(), re.MULTILINE
    )
    assert [name for name, _ in commands] == ["predict", "finetune", "verify", "bench", "report"]
    assert all((folder / path).exists() for _, path in commands)
    run = next(RunDirectory(folder / path) for name, path in commands if name == "bench")
    assert BundleDirectory.exists_at(run.bundle)
    assert list(run.bench.glob("*.json"))
    image = folder / "parts/val/scratched/scratched_0000.jpg"
    assert edgetl("predict", run.bundle, image, "--json").returncode == 0
    assert [
        path
        for path in folder.iterdir()
        if path.suffix != ".html" and path.name not in ("parts", "comparison", "README.md")
    ] == []
    printed_commands = [
        line.split()[2] for line in printed.splitlines() if line.startswith("$ edgetl")
    ]
    assert printed_commands == ["check", "compare", "export", "verify", "bench", "report"]
    assert re.search(r"^fp32 +cpu +passed ", printed, re.MULTILINE)


@pytest.mark.parametrize(
    ("weights", "model", "resolved"),
    [
        ("builtin", "mobilenet_v3_small", "builtin"),
        ("imagenet", "efficientnet_lite0", "imagenet"),
        ("mine.safetensors", "mobilenet_v3_small", "mine.safetensors"),
    ],
)
def test_model_follows_from_the_weights(weights: str, model: str, resolved: str) -> None:
    settings = choose_settings(weights)
    assert (settings.model, settings.weights) == (model, resolved)


@pytest.mark.parametrize(
    ("is_installed", "model"),
    [
        (True, "efficientnet_lite0"),
        (False, "mobilenet_v3_small"),
    ],
)
def test_auto_weights_follow_from_the_extra(
    monkeypatch: pytest.MonkeyPatch, is_installed: bool, model: str
) -> None:
    if not is_installed:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert choose_settings("auto").model == model


def test_nonempty_folder_is_rejected(edgetl: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    process = edgetl("demo", "--keep", tmp_path / "mine")
    assert process.returncode == 1
    assert "Choose another folder with --keep." in process.stderr
    assert (tmp_path / "mine/notes.txt").read_text() == "keep"


def test_missing_weights_are_reported_before_writing(forked: Run, tmp_path: Path) -> None:
    process = forked("demo", "--weights", "nowhere.safetensors", "--keep", tmp_path / "new")
    assert process.returncode == 1
    assert "nowhere.safetensors" in process.stderr
    assert not (tmp_path / "new").exists()
