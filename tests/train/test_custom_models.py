"""Runs with a model of the user's own: its initial values, its recorded code, and resuming."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgetl.core.artifacts.run_config import read_run_configuration
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import EdgetlError, RunError
from edgetl.core.files import sha256_file
from edgetl.core.paths import RunDirectory
from edgetl.core.progress import TrainingProgress
from edgetl.experiment.messages import WorkerTask
from edgetl.experiment.task_process import _make_environment
from edgetl.train.finetune import _feature_key, finetune, resume
from edgetl.train.setup import prepare_run
from tests.helpers.trained_runs import load_model

CODE = """
import torch
from torch import nn

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4, bias=False)
        self.norm = nn.BatchNorm2d(8)
        nn.init.constant_(self.stem.weight, 0.125)

    def forward(self, x):
        return torch.relu(self.norm(self.stem(x))).mean((2, 3))

def build(classes):
    return Network()
"""
_numbers = itertools.count()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """File of a new module in a folder of its own, which is the current one."""
    folder = tmp_path / "code"
    folder.mkdir()
    path = folder / f"custom_{next(_numbers)}.py"
    path.write_text(CODE, encoding="utf-8")
    monkeypatch.chdir(folder)
    search_path = list(sys.path)
    yield path
    forget(path)
    sys.path[:] = search_path


def forget(path: Path) -> None:
    """Forget that a module was imported, as in a new process."""
    sys.modules.pop(path.stem, None)
    sys.path[:] = [entry for entry in sys.path if entry != str(path.parent)]


@pytest.fixture
def config(module: Path, parts: Path, tmp_path: Path) -> FinetuneConfig:
    return FinetuneConfig(
        parts,
        tmp_path / "run",
        model=f"{module.stem}:build",
        image_size=32,
        epochs=1,
        finetune_epochs=0,
        workers=0,
        device="cpu",
    )


def test_values_as_built_stay_in_the_frozen_blocks(config: FinetuneConfig, module: Path) -> None:
    run = finetune(config)
    recorded = read_run_configuration(run)
    assert recorded.weights.source == "as built"
    assert recorded.code is not None
    assert recorded.code.root == module.parent
    assert recorded.code.files == {module.name: sha256_file(module)}
    model = load_model(run)
    assert model.weights_source == "as built"
    stem = model.model.get_parameter("backbone.stem.weight")
    assert torch.equal(stem, torch.full((8, 3, 3, 3), 0.125))


def test_random_values_are_all_trained(config: FinetuneConfig) -> None:
    run = finetune(replace(config, weights="none"))
    recorded = read_run_configuration(run)
    assert recorded.weights.source == "none"
    assert recorded.config.unfreeze == "all"
    stem = load_model(run).model.get_parameter("backbone.stem.weight")
    assert not torch.equal(stem, torch.full((8, 3, 3, 3), 0.125))


def test_nothing_is_written_when_the_model_is_unusable(config: FinetuneConfig) -> None:
    with pytest.raises(EdgetlError, match=r"has no function other_build\. Did you mean build"):
        finetune(replace(config, model=config.model.replace(":build", ":other_build")))
    assert config.output is not None
    assert not config.output.exists()


def test_cached_features_depend_on_the_code(config: FinetuneConfig, module: Path) -> None:
    assert config.output is not None
    setup = prepare_run(config, RunDirectory(config.output), TrainingProgress())
    assert _feature_key(setup, setup.data.entries, {})["code"] == {module.name: sha256_file(module)}
    stock = replace(config, model="squeezenet1_1", weights="none")
    setup = prepare_run(stock, RunDirectory(config.output), TrainingProgress())
    assert "code" not in _feature_key(setup, setup.data.entries, {})


def test_run_resumes_with_the_recorded_code_only(
    config: FinetuneConfig, module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finetune(config)
    run.metrics.unlink()
    monkeypatch.chdir(tmp_path)
    forget(module)
    resume(run)
    assert run.metrics.exists()
    run.metrics.unlink()
    module.write_text(CODE.replace("relu", "tanh"), encoding="utf-8")
    with pytest.raises(RunError, match=rf"changed after training: {module.name}\. Restore it"):
        resume(run)
    with pytest.raises(RunError, match=rf"changed after training: {module.name}\. Restore it"):
        load_model(run)


def test_workers_of_an_experiment_find_the_code(
    config: FinetuneConfig, module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(module.parent)
    monkeypatch.chdir(tmp_path)
    for task in (WorkerTask(train=config), WorkerTask(estimate=(config, config))):
        folders = _make_environment(task)["PYTHONPATH"].split(os.pathsep)
        assert folders.count(str(module.parent)) == 1
    stock = replace(config, model="squeezenet1_1")
    assert str(module.parent) not in _make_environment(WorkerTask(train=stock))["PYTHONPATH"]
