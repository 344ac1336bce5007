"""Deterministic algorithms: settings of PyTorch, messages and errors, on a CPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import ConfigError
from edgetl.core.progress import TrainingProgress
from edgetl.train.common.precision import cudnn_autotuning
from edgetl.train.engine.determinism import deterministic_algorithms, measure_slowdown
from edgetl.train.finetune import finetune
from tests.conftest import ARCHITECTURE, IMAGE_SIZE


def test_deterministic_algorithms_only_inside_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with deterministic_algorithms(False):
        assert not torch.are_deterministic_algorithms_enabled()
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    with deterministic_algorithms(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.are_deterministic_algorithms_enabled()


def test_memory_is_not_filled_inside_block() -> None:
    assert torch.utils.deterministic.fill_uninitialized_memory
    with deterministic_algorithms(True):
        assert not torch.utils.deterministic.fill_uninitialized_memory
    assert torch.utils.deterministic.fill_uninitialized_memory
    with deterministic_algorithms(False):
        assert torch.utils.deterministic.fill_uninitialized_memory


def test_cudnn_autotuning_is_off_when_deterministic() -> None:
    with cudnn_autotuning(True):
        assert torch.backends.cudnn.benchmark
        with cudnn_autotuning(False):
            assert not torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.benchmark
    with deterministic_algorithms(True), cudnn_autotuning(True):
        assert not torch.backends.cudnn.benchmark


def test_measure_slowdown_is_ratio_of_step_times() -> None:
    with deterministic_algorithms(True):
        assert (
            measure_slowdown(lambda: 3.0 if torch.are_deterministic_algorithms_enabled() else 2.0)
            == 1.5
        )
        assert torch.are_deterministic_algorithms_enabled()


def test_operator_without_algorithm_raises_config_error() -> None:
    def step() -> float:
        raise RuntimeError(
            "adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, but you set ..."
        )

    with pytest.raises(
        ConfigError,
        match="adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation",
    ):
        measure_slowdown(step)

    def broken() -> float:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        measure_slowdown(broken)


def test_deterministic_runs_are_equal_on_cpu(
    parts: Path, random_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Notes(TrainingProgress):
        text = ""

        def note(self, text: str) -> None:
            self.text += text

    notes, runs = Notes(), []
    for name in ("first", "second"):
        # Separate caches, so that the runs share neither measurements nor features.
        monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / f"cache of {name}"))
        config = FinetuneConfig(
            parts, tmp_path / name, ARCHITECTURE, str(random_weights), IMAGE_SIZE,
            device="cpu", precision="fp32", epochs=1, finetune_epochs=1, deterministic=True,
        )  # fmt: skip
        runs.append(finetune(config, notes).weights.read_bytes())
    assert "nothing is chosen by timing" in notes.text
    assert runs[0] == runs[1]
