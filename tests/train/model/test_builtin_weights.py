"""`--weights builtin`, with weights created by the test; the shipped ones may change."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from edgetl.cli.app import create_app
from edgetl.core import builtin_weights
from edgetl.core.builtin_weights import WEIGHTS_FILE, write_checksums
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import WeightsError
from edgetl.core.files import read_json, sha256_file
from edgetl.core.paths import RunDirectory
from edgetl.train.finetune import finetune
from edgetl.train.model.factory import load_stock_model
from edgetl.train.model.weights import read_weights
from tests.helpers.trained_runs import load_model

ROOT = Path(__file__).parents[3]
MODEL = "mobilenet_v3_small"


def ship(parent: Path, random_weights: Path) -> Path:
    folder = parent / f"{MODEL}-builtin"
    folder.mkdir(parents=True)
    backbone = {
        name: tensor
        for name, tensor in load_file(random_weights).items()
        if not name.startswith("classifier.3.") and tensor.is_floating_point()
    }
    save_file(
        {name: tensor.half() if tensor.dim() > 1 else tensor for name, tensor in backbone.items()},
        folder / WEIGHTS_FILE,
    )
    write_checksums(folder)
    return folder


@pytest.fixture
def shipped(tmp_path: Path, random_weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(
        builtin_weights, "list_search_folders", lambda: (tmp_path / "nowhere", tmp_path / "models")
    )
    return ship(tmp_path / "models", random_weights)


def test_finetune_uses_and_records_builtin_weights(
    shipped: Path, make_images: Callable[..., Path], tmp_path: Path
) -> None:
    data = make_images("data", ["red", "blue"])
    config = FinetuneConfig(
        data,
        tmp_path / "run",
        MODEL,
        "builtin",
        image_size=32,
        epochs=1,
        finetune_epochs=0,
        workers=0,
        device="cpu",
    )
    run: RunDirectory = finetune(config)
    assert read_json(run.metrics, AssertionError, "metrics")["weights"] == {
        "source": "builtin",
        "sha256": sha256_file(shipped / WEIGHTS_FILE),
    }
    expected = load_file(shipped / WEIGHTS_FILE)["features.0.0.weight"]
    model = load_model(run)
    assert model.weights_source == "builtin"
    assert torch.equal(model.model.state_dict()["features.0.0.weight"], expected.float())


def test_changed_weights_are_rejected_before_writing(
    shipped: Path, make_images: Callable[..., Path], tmp_path: Path
) -> None:
    content = bytearray((shipped / WEIGHTS_FILE).read_bytes())
    content[-100] ^= 1
    (shipped / WEIGHTS_FILE).write_bytes(content)
    output = tmp_path / "run"
    arguments = [
        "finetune",
        str(make_images("data", ["red", "blue"])),
        "--weights",
        "builtin",
        "--model",
        MODEL,
        "-o",
        str(output),
    ]
    result = CliRunner().invoke(create_app(), arguments)
    assert isinstance(result.exception, WeightsError)
    assert str(result.exception).count("\n") == 0
    assert "its SHA-256 does not match SHA256SUMS" in str(result.exception)
    assert not output.exists()


def test_builtin_rejects_other_models_and_stock_export(shipped: Path) -> None:
    with pytest.raises(WeightsError, match=f"no weights for resnet18.*or model {MODEL}"):
        read_weights("builtin", "resnet18")
    with pytest.raises(WeightsError, match="edgetl finetune DATA --weights builtin"):
        load_stock_model(MODEL, "builtin")


def test_models_command_lists_builtin_weights(shipped: Path) -> None:
    import json

    listed = json.loads(CliRunner().invoke(create_app(), ["models", "--json"]).stdout)["models"]
    assert [row["name"] for row in listed if row["builtin"]] == [MODEL]
    line = next(
        line
        for line in CliRunner().invoke(create_app(), ["models", MODEL]).stdout.splitlines()
        if MODEL in line
    )
    assert "builtin" in line


def test_shipped_weights_are_complete_and_small() -> None:
    for architecture in builtin_weights.find_builtin_folders():
        weights = read_weights("builtin", architecture)
        assert weights is not None
        assert sum(tensor.numel() for tensor in weights.tensors.values()) > 1e5
    assert (
        sum(path.stat().st_size for path in (ROOT / "models").rglob("*") if path.is_file()) <= 6e6
    ), "the repository must stay small"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory, random_weights: Path) -> Path:
    """Unpacked wheel of this checkout with weights created by the test."""
    pytest.importorskip("hatchling", reason="hatchling builds the wheel: pip install -e '.[dev]'")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(
        ROOT / "edgetl", source / "edgetl", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source / name)
    ship(source / "models", random_weights)
    code = f"from hatchling.build import build_wheel; build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


@pytest.mark.slow
def test_builtin_weights_load_from_a_wheel(unpacked: Path, tmp_path: Path) -> None:
    def read_from_wheel() -> subprocess.CompletedProcess[str]:
        code = (
            "from edgetl.train.model.weights import read_weights; "
            f"w = read_weights('builtin', {MODEL!r}); print(len(w.tensors), w.sha256)"
        )
        environment = {**os.environ, "PYTHONPATH": str(unpacked)}
        return subprocess.run(
            [sys.executable, "-P", "-c", code],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )

    file = unpacked / "edgetl/_models" / f"{MODEL}-builtin" / WEIGHTS_FILE
    result = read_from_wheel()
    assert result.stdout.split() == [str(len(load_file(file))), sha256_file(file)], result.stderr
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert "its SHA-256 does not match SHA256SUMS" in read_from_wheel().stderr
