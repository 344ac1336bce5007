"""Pretraining of a few steps: resuming after a kill, and the released folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edgetl.core.builtin_weights import CARD_FILE, CHECKSUMS_FILE, RECIPE_FILE, WEIGHTS_FILE
from edgetl.core.errors import ConfigError
from edgetl.train.model.factory import build_adapted_model
from edgetl.train.model.weights import read_weights
from tools.pretraining.card import render_card
from tools.pretraining.pretrain import main
from tools.pretraining.recipe import Recipe, read_recipe, write_recipe
from tools.pretraining.release import write_card

ROOT = Path(__file__).parents[3]
TINY = """
fractals = 2
textures = 2
solids = 2
bodies = 2
image_side = 36
shard_images = 32
first_shards = 1
window_shards = 2
reuse = 1
sides = [32, 40]
batch_size = 8
statistics_images = 8
steps = 10
"""


def start_pretraining(folder: Path, name: str) -> subprocess.Popen[str]:
    (folder / "tiny.toml").write_text(TINY)
    command = [sys.executable, "-m", "tools.pretraining.pretrain"]
    command += ["--recipe", str(folder / "tiny.toml"), "--work", str(folder / name / "work")]
    command += ["-o", str(folder / name / "out"), "--device", "cpu", "--precision", "fp32"]
    command += ["--checkpoint-every", "0s"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrain")
    process = start_pretraining(folder, "uninterrupted")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return folder / "uninterrupted"


@pytest.mark.slow
def test_resume_after_kill_gives_the_same_weights(released: Path) -> None:
    folder, state = released.parent, released.parent / "killed/work/state.safetensors"
    process = start_pretraining(folder, "killed")
    deadline = time.monotonic() + 100
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it finished before it could be killed"
    process = start_pretraining(folder, "killed")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert "Resuming at step" in output
    assert "Resuming at step 0" not in output
    expected = load_file(released / "out" / WEIGHTS_FILE)
    resumed = load_file(folder / "killed/out" / WEIGHTS_FILE)
    assert expected.keys() == resumed.keys()
    assert [name for name in expected if not torch.equal(expected[name], resumed[name])] == []

    def untimed_curve(run: Path) -> list[dict[str, float]]:
        lines = (run / "work/loss.jsonl").read_text().splitlines()
        return [{**json.loads(line), "seconds": 0, "images_per_second": 0} for line in lines]

    assert untimed_curve(released) == untimed_curve(folder / "killed")
    assert untimed_curve(released)[-1]["step"] == 10


def test_release_is_small_and_loads_for_fine_tuning(released: Path) -> None:
    out = released / "out"
    tensors = load_file(out / WEIGHTS_FILE)
    assert {tensor.dtype for tensor in tensors.values() if tensor.dim() > 1} == {torch.float16}
    assert not any(
        name.startswith("classifier.3.") or name.endswith("num_batches_tracked") for name in tensors
    )
    assert (out / WEIGHTS_FILE).stat().st_size < 4e6
    process = subprocess.run(
        ["sha256sum", "-c", CHECKSUMS_FILE], cwd=out, capture_output=True, text=True
    )
    assert process.returncode == 0
    assert process.stdout.count("OK") == 4
    weights = read_weights(str(out / WEIGHTS_FILE), "mobilenet_v3_small")
    model = build_adapted_model("mobilenet_v3_small", 64, 3, 0, 0.2, weights).model.eval()
    with torch.no_grad():
        assert torch.isfinite(model(torch.randn(2, 3, 64, 64))).all()


def test_card_shows_cost_recipe_and_later_measurements(released: Path) -> None:
    out = released / "out"
    card = (out / CARD_FILE).read_text()
    expected = (
        "80 in 10 steps",
        "8 classes",
        "Chance is 12%",
        "Not measured",
        "steps = 10",
        "| 10 |",
    )
    for text in expected:
        assert text in card
    assert read_recipe(out / RECIPE_FILE).steps == 10
    write_card(out, worth={"flowers": "| a | table |"})
    assert "| a | table |" in (out / CARD_FILE).read_text()
    assert subprocess.run(["sha256sum", "-c", "--quiet", CHECKSUMS_FILE], cwd=out).returncode == 0


def test_work_folder_of_another_recipe_is_rejected(released: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "other.toml"
    recipe.write_text(TINY.replace("steps = 10", "steps = 11"))
    arguments = ("--recipe", recipe, "--work", released / "work", "-o", released / "out")
    with pytest.raises(SystemExit, match="contains the training of another recipe"):
        main([*map(str, arguments)])


def test_recipe_is_read_written_and_validated(tmp_path: Path) -> None:
    recipe = read_recipe(None, model=None, budget_s=60.0)
    assert (recipe.model, recipe.budget_s, recipe.steps) == ("mobilenet_v3_small", 60.0, 0)
    write_recipe(tmp_path / "r.toml", recipe, 123)
    assert read_recipe(tmp_path / "r.toml") == Recipe(steps=123)
    assert read_recipe(tmp_path / "r.toml", budget_s=5.0) == Recipe(budget_s=5.0)
    for overrides, message in (
        ({}, "either steps or budget_s"),
        ({"steps": 1, "batch_size": 1, "lr": 0.0}, r"lr must be above 0, got 0\.0; batch_size"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_recipe(None, **overrides)
    (tmp_path / "r.toml").write_text("stps = 3\n")
    with pytest.raises(ConfigError, match="unknown names: stps"):
        read_recipe(tmp_path / "r.toml")
    with pytest.raises(ConfigError, match="Cannot read the recipe"):
        read_recipe(tmp_path / "none.toml")


def test_card_renders_results_without_measurements() -> None:
    results = {
        "model": "m", "steps": 1, "images_seen": 1, "images_drawn": 1, "classes": 2,
        "seconds": 36.0, "device": "cpu", "precision": "fp32", "versions": {},
        "unseen_accuracy": {}, "curve": [], "worth": {},
    }  # fmt: skip
    assert "0.01 hours on cpu in fp32" in render_card(results, "steps = 1\n", 2_000_000)
