"""Batch size search, with simulated throughput and memory."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgetl.core.artifacts.measured_choices import BatchSizeResult
from edgetl.core.artifacts.run import EpochRecord
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.paths import RunDirectory
from edgetl.core.progress import TrainingProgress
from edgetl.core.typed_json import parse_as, to_json
from edgetl.train import setup
from edgetl.train.common.precision import ComputeConfig
from edgetl.train.engine import trainer
from edgetl.train.engine.batch_size import (
    MIN_STEPS_PER_EPOCH,
    StepTimer,
    autotune_batch_size,
    describe_batch_size,
    largest_batch_size,
    search_batch_size,
)
from edgetl.train.engine.phases import Phase, plan_phases, resolve_phase
from edgetl.train.finetune import finetune, resume
from edgetl.train.model.factory import build_adapted_model
from tests.conftest import ARCHITECTURE, IMAGE_SIZE

CPU = ComputeConfig(torch.device("cpu"), "fp32")
PHASE = Phase(2, 1, 1e-3, "all", freeze_statistics=False)


def gpu(memory: int, saturated: int) -> tuple[list[int], object]:
    """Simulate a GPU that holds `memory` images and is saturated at `saturated` images per step."""
    sizes: list[int] = []

    def measure(size: int) -> float:
        sizes.append(size)
        if size > memory:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return 10.0 * min(size, saturated)

    return sizes, measure


@pytest.mark.parametrize(
    ("memory", "saturated", "largest", "expected"),
    [
        (10_000, 10_000, 512, (512, "steps", [64, 128, 256, 512])),
        (300, 10_000, 2048, (256, "memory", [64, 128, 256, 512])),
        (10_000, 256, 2048, (256, "rate", [64, 128, 256, 512])),
        (10_000, 10_000, 64, (64, "steps", [64])),
        (32, 10_000, 2048, (64, "memory", [64])),
    ],
)
def test_search_doubles_until_a_limit(
    memory: int, saturated: int, largest: int, expected: tuple[int, str, list[int]]
) -> None:
    sizes, measure = gpu(memory, saturated)
    result = search_batch_size(measure, 64, largest)  # type: ignore[arg-type]
    assert (result.batch_size, result.ended, sizes) == expected
    assert result.usual == 64
    assert list(result.images_per_second) == [str(size) for size in sizes if size <= memory]


def test_search_ends_at_memory_limit() -> None:
    def measure(size: int) -> float:
        if size > 64:
            raise MemoryError("more than half of the free memory")
        return 1.0

    assert search_batch_size(measure, 64, 1024) == BatchSizeResult(64, 64, {"64": 1.0}, "memory")


def test_search_propagates_other_errors() -> None:
    def measure(size: int) -> float:
        raise RuntimeError(f"no kernel image for {size}")

    with pytest.raises(RuntimeError, match="no kernel image"):
        search_batch_size(measure, 64, 128)


@given(st.integers(1, 10**7), st.sampled_from([16, 32, 64]))
def test_largest_batch_size_leaves_minimum_steps(images: int, default: int) -> None:
    largest = largest_batch_size(images, default)
    assert largest >= default
    assert largest & (largest - 1) == 0
    assert largest == default or images // largest >= MIN_STEPS_PER_EPOCH
    assert images // (2 * largest) < MIN_STEPS_PER_EPOCH


def test_lr_scale_is_square_root_of_ratio() -> None:
    result = BatchSizeResult(256, 64, {"64": 1.0}, "rate")
    assert result.lr_scale == 2.0
    assert to_json(result)["lr_scale"] == 2.0
    assert parse_as(BatchSizeResult, to_json(result)) == result
    assert math.isclose(BatchSizeResult(128, 64).lr_scale, 2**0.5)


def test_describe_batch_size() -> None:
    assert "256 images per step (default 64), learning rates scaled by 2.00" in describe_batch_size(
        BatchSizeResult(256, 64, {}, "rate"), "cuda"
    )
    assert "64 images per step, the default on a CPU" in describe_batch_size(
        BatchSizeResult(64, 64), "cpu"
    )


def test_autotune_returns_default_on_cpu() -> None:
    adapted = build_adapted_model("mobilenet_v3_small", 32, 2, 8, 0.2, None)
    assert autotune_batch_size(
        adapted, PHASE, FinetuneConfig(Path("data")), CPU, 32, 10_000, 64
    ) == BatchSizeResult(64, 64)


def test_step_timer_does_not_change_model() -> None:
    torch.manual_seed(0)
    adapted = build_adapted_model("mobilenet_v3_small", 32, 2, 8, 0.2, None)
    before = {name: tensor.clone() for name, tensor in adapted.model.state_dict().items()}
    state = torch.get_rng_state()
    timer = StepTimer(adapted, PHASE, FinetuneConfig(Path("data")), CPU, 32, 2)
    assert timer(4) > 0
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in adapted.model.state_dict().items()
    )
    assert all(parameter.grad is None for parameter in adapted.model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_lr_scale_applies_to_every_phase() -> None:
    config = FinetuneConfig(Path("data"))
    plain, scaled = (plan_phases(config, "3", 64, lr_scale) for lr_scale in (1.0, 2.0))
    assert [phase.lr for phase in scaled] == [2 * phase.lr for phase in plain]
    for accuracy in (1.0, 0.9, 0.1):
        rates = [
            resolve_phase(plain[1], config, accuracy, lambda: 0.0).lr,
            resolve_phase(scaled[1], config, accuracy, lambda: 0.0, 2.0).lr,
        ]
        assert rates[1] == 2 * rates[0]
    fixed = replace(config, finetune_lr=1e-4)
    assert (
        resolve_phase(plan_phases(fixed, "3", 64, 2.0)[1], fixed, 0.5, lambda: 0.0, 2.0).lr == 2e-4
    )


@pytest.fixture
def config(parts: Path, random_weights: Path, tmp_path: Path) -> FinetuneConfig:
    return FinetuneConfig(
        parts, tmp_path / "run", ARCHITECTURE, str(random_weights), IMAGE_SIZE,
        device="cpu", precision="fp32", epochs=3, finetune_epochs=1, schedule="constant",
        warmup=0.0, lr=1e-3, finetune_lr=1e-4, batch_size="auto",
    )  # fmt: skip


def test_auto_on_cpu_trains_with_default_size(config: FinetuneConfig, tmp_path: Path) -> None:
    class Notes(TrainingProgress):
        text = ""

        def note(self, text: str) -> None:
            self.text += text

    notes = Notes()
    auto = finetune(config, notes)
    default = finetune(replace(config, output=tmp_path / "default", batch_size=None))
    assert "images per step, the default on a CPU" in notes.text
    assert auto.weights.read_bytes() == default.weights.read_bytes()
    written, metrics = (json.loads(path.read_text()) for path in (auto.config, auto.metrics))
    assert written["asked"]["batch_size"] == "auto"
    assert (
        written["config"]["batch_size"]
        == written["batch"]["batch_size"]
        == written["batch"]["usual"]
    )
    assert metrics["batch"] == written["batch"]
    assert json.loads(default.metrics.read_text())["batch"] is None


def test_resume_keeps_the_batch_size(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(TrainingProgress):
        def on_epoch_end(self, record: EpochRecord, best: bool) -> None:
            if record.epoch == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "CHECKPOINT_INTERVAL_S", 0.0)
    monkeypatch.setattr(
        setup, "autotune_batch_size", lambda *_: BatchSizeResult(8, 2, {"2": 1.0, "8": 9.0}, "rate")
    )
    with pytest.raises(KeyboardInterrupt):
        finetune(config, Interrupted())
    assert config.output is not None
    run = RunDirectory(config.output)
    assert run.checkpoint.exists()
    monkeypatch.setattr(setup, "autotune_batch_size", lambda *_: pytest.fail("searched again"))
    resume(run)
    rates = [json.loads(line)["lr"] for line in run.history.read_text().splitlines()]
    assert rates == pytest.approx([2e-3] * 3 + [2e-4])
    assert json.loads(run.metrics.read_text())["batch"]["batch_size"] == 8
