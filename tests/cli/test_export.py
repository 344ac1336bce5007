"""`edgetl export`, as a user runs it on a run of their own."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ARCHITECTURE, IMAGE_SIZE

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def finished_run(edgetl: Run, parts: Path, random_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    done = edgetl(
        "finetune", parts, "-o", run, "--model", ARCHITECTURE, "--weights", random_weights, "--image-size", IMAGE_SIZE,
        # A head of its own width: random features answer to single grey levels, and a linear head passes that on.
        "--preset", "classic", "--epochs", 1, "--finetune-epochs", 1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return run


def test_run_to_bundle(edgetl: Run, finished_run: Path) -> None:
    done = edgetl("export", finished_run)
    assert done.returncode == 0, done.stderr
    assert "Proven equal to PyTorch on 20 validation images" in done.stdout
    manifest = json.loads((finished_run / "bundle/bundle.json").read_text())
    (variant,) = manifest["variants"]
    metrics = json.loads((finished_run / "metrics.json").read_text())
    assert manifest["labels"] == metrics["classes"]
    assert variant["accuracy"]["images"] == 20
    assert variant["accuracy"]["flips"] == 0
    assert variant["accuracy"]["top1"] == pytest.approx(metrics["val"]["accuracy"])
    again = edgetl("export", finished_run)
    assert again.returncode == 1
    assert "--force" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing_v9", "-o", "{out}"], "nothing_v9"),
        (["{run}", "--weights", "x.pth"], "belong to a stock architecture"),
        (["{run}", "--input", "video", "-o", "{out}"], "--input takes image, tensor"),
        (["{run}", "--opset", "11", "-o", "{out}"], "--opset is at least 18"),
        ([ARCHITECTURE, "--weights", "{out}/none.pth", "-o", "{out}"], "none.pth"),
        (["{empty}", "-o", "{out}"], "is not a run directory"),
    ],
)
def test_mistakes_are_one_clear_sentence(edgetl: Run, finished_run: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    places = {"run": finished_run, "out": tmp_path / "out", "empty": tmp_path / "empty"}
    done = edgetl("export", *(argument.format(**places) for argument in arguments))
    assert done.returncode == 1, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_images_that_are_gone(edgetl: Run, finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    config = json.loads((run / "config.json").read_text())
    config["config"]["data"] = str(tmp_path / "moved")
    (run / "config.json").write_text(json.dumps(config))
    done = edgetl("export", run, "-o", tmp_path / "out")
    assert done.returncode == 1
    assert "images are gone" in done.stderr
    assert not (tmp_path / "out").exists()
