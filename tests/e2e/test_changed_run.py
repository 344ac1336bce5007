"""`edgetl export` rejects runs that were changed after training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from edgetl.core.config.export import ExportConfig
from edgetl.core.errors import ExportError, RunError
from edgetl.core.files import sha256_file
from edgetl.core.paths import RunDirectory
from edgetl.export.exporter import export_run
from tests.conftest import ARCHITECTURE, IMAGE_SIZE


@pytest.fixture(scope="module")
def accurate_run(
    forked: Callable[..., Any], random_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Train a run whose classes are easy to separate."""
    import numpy as np
    from PIL import Image

    data, generator = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for label, tint in (("dark", 30), ("light", 200)):
        for split in ("train", "val"):
            folder = data / split / label
            folder.mkdir(parents=True)
            for number in range(10):
                Image.fromarray(
                    generator.integers(tint - 20, tint + 20, (48, 48, 3)).astype(np.uint8)
                ).save(folder / f"{number}.png")
    run = tmp_path_factory.mktemp("runs") / "run"
    process = forked(
        "finetune", data, "-o", run, "--model", ARCHITECTURE, "--weights", random_weights,
        "--image-size", IMAGE_SIZE, "--epochs", 3, "--finetune-epochs", 0,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert json.loads((run / "metrics.json").read_text())["val"]["accuracy"] == 1.0
    return run


@pytest.fixture
def run(accurate_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(accurate_run, tmp_path / "run"))


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def flip_head(run: Path) -> None:
    weights = load_file(run / "weights.safetensors")
    name = [key for key in weights if key.endswith("weight") and weights[key].ndim == 2][-1]
    weights[name] = -weights[name]
    save_file(weights, run / "weights.safetensors")


def test_run_records_final_weights_and_classes(run: Path) -> None:
    final = json.loads((run / "metrics.json").read_text())["final"]
    assert final["weights_sha256"] == sha256_file(run / "weights.safetensors")
    assert final["classes"] == ["dark", "light"]


def test_changed_weights_are_rejected(run: Path) -> None:
    flip_head(run)
    with pytest.raises(RunError, match=r"weights\.safetensors was changed after the training"):
        export_run(RunDirectory(run), ExportConfig())


@pytest.mark.parametrize("change", ["classes", "preprocessing"])
def test_changed_config_is_rejected(run: Path, change: str) -> None:
    def alter(content: dict[str, Any]) -> None:
        content["classes"].reverse()
        if change == "preprocessing":
            content["classes"].reverse()
            content["preprocessing"]["mean"] = [0.1, 0.1, 0.1]

    edit(run / "config.json", alter)
    with pytest.raises(RunError, match=r"config\.json was changed after the training"):
        export_run(RunDirectory(run), ExportConfig())
    assert not (run / "bundle").exists()


def test_accuracy_outside_the_interval_is_rejected(run: Path) -> None:
    """Detect changed weights by accuracy if the hashes are missing or were changed as well."""
    flip_head(run)
    edit(run / "metrics.json", lambda content: content.pop("final"))
    with pytest.raises(ExportError, match=r"metrics\.json has 100\.0%"):
        export_run(RunDirectory(run), ExportConfig())
    assert not (run / "bundle").exists()


@pytest.mark.parametrize(
    "change", [{"val": 3}, {"val": {"images": 20, "accuracy": "1"}}, {"final": {"classes": 5}}]
)
def test_malformed_metrics_are_rejected(run: Path, change: dict[str, Any]) -> None:
    edit(run / "metrics.json", lambda content: content.update(change))
    with pytest.raises(RunError, match=r"metrics\.json is broken"):
        export_run(RunDirectory(run), ExportConfig())
