"""CUDA graphs: conditions, choice and fallback, with simulated captures on a CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.paths import RunDirectory
from edgetl.core.progress import TrainingProgress
from edgetl.train.common.precision import ComputeConfig
from edgetl.train.engine import cuda_graphs, phase_loop
from edgetl.train.engine.cuda_graphs import (
    CUDA_GRAPH,
    EAGER,
    MIN_STEPS_FOR_CAPTURE,
    GraphedForward,
    autotune_forward,
    choose_runner,
    cuda_graph_skip_reason,
    time_interleaved,
)
from edgetl.train.finetune import finetune
from tests.conftest import ARCHITECTURE, IMAGE_SIZE

CPU, GPU = (ComputeConfig(torch.device(name), "bf16") for name in ("cpu", "cuda"))
FP32 = ComputeConfig(torch.device("cpu"), "fp32")


@pytest.fixture(autouse=True)
def _isolated_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((GPU, 1, False, False, MIN_STEPS_FOR_CAPTURE), None),
        ((CPU, 1, False, False, MIN_STEPS_FOR_CAPTURE), "not on a GPU"),
        ((GPU, 2, False, False, MIN_STEPS_FOR_CAPTURE), "several processes"),
        ((GPU, 1, True, False, MIN_STEPS_FOR_CAPTURE), "--deterministic"),
        ((GPU, 1, False, True, MIN_STEPS_FOR_CAPTURE), "--compile"),
        (
            (GPU, 1, False, False, MIN_STEPS_FOR_CAPTURE - 1),
            f"fewer than {MIN_STEPS_FOR_CAPTURE} steps",
        ),
    ],
)
def test_cuda_graph_skip_reason(arguments: tuple[Any, ...], reason: str | None) -> None:
    assert cuda_graph_skip_reason(*arguments) == reason


def test_graph_runs_only_for_full_training_batches() -> None:
    model = nn.Linear(3, 2).train()
    forward = GraphedForward(
        lambda *_: torch.zeros(1), lambda *_: torch.ones(1), (torch.zeros(4, 3),), model
    )

    def replays(values: Tensor) -> bool:
        return bool(forward(values))

    assert replays(torch.rand(4, 3))
    assert not replays(torch.rand(5, 3)), "another batch size"
    assert not replays(torch.rand(4, 3).double()), "another type"
    with torch.no_grad():
        assert not replays(torch.rand(4, 3)), "no gradients"
    model.eval()
    assert not replays(torch.rand(4, 3)), "evaluation"


def test_choose_runner_prefers_clearly_faster_graph() -> None:
    assert choose_runner({EAGER: 10.0, CUDA_GRAPH: 9.0}) == CUDA_GRAPH
    assert choose_runner({EAGER: 10.0, CUDA_GRAPH: 9.9}) == EAGER
    assert choose_runner({EAGER: 10.0, CUDA_GRAPH: 11.0}) == EAGER


def test_time_interleaved_synchronizes_per_block() -> None:
    events: list[str] = []
    now = 0.0

    def step(name: str, seconds: float) -> Any:
        def run() -> None:
            nonlocal now
            now += seconds
            events.append(name)

        return run

    times = time_interleaved(
        {"slow": step("s", 0.004), "fast": step("f", 0.001)},
        lambda: events.append("|"),
        lambda: now,
    )
    assert times == {"slow": pytest.approx(4.0), "fast": pytest.approx(1.0)}
    block = "|" + "s" * 10 + "|" + "|" + "f" * 10 + "|"
    assert "".join(events) == "sssfff" + 5 * block


class SmallModel(nn.Module):
    """Model with all kinds of state that a measurement could change."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 2)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits [batch, 2] of images [batch, 3, 8, 8]."""
        logits: Tensor = self.layers(images)
        return logits


BATCH = ((torch.randn(4, 3, 8, 8),), torch.tensor([0, 1, 0, 1]))


def test_autotune_preserves_state_and_caches_times(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SmallModel().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    captures: list[int] = []
    timings: list[int] = []

    def capture(
        module: nn.Module, values: tuple[Tensor, ...], _: ComputeConfig
    ) -> cuda_graphs.ForwardFunction:
        captures.append(len(values))
        module(*values)
        return module

    def fake_times(steps: Any, _wait: Any) -> dict[str, float]:
        for step in steps.values():
            step()
        timings.append(1)
        return {EAGER: 2.0, CUDA_GRAPH: 1.0}

    monkeypatch.setattr(cuda_graphs, "time_interleaved", fake_times)
    for _ in range(2):
        forward, report = autotune_forward(
            model, model, model, BATCH, FP32, {"model": "small"}, capture
        )
        assert (report.runner, report.milliseconds) == (CUDA_GRAPH, {EAGER: 2.0, CUDA_GRAPH: 1.0})
        assert isinstance(forward, GraphedForward)
    assert len(captures) == 2, "a graph is captured in every process"
    assert len(timings) == 1, "its timing is cached"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_slower_graph_is_not_captured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SmallModel().train()
    captures: list[int] = []

    def capture(module: nn.Module, *_: Any) -> cuda_graphs.ForwardFunction:
        captures.append(1)
        return module

    monkeypatch.setattr(cuda_graphs, "time_interleaved", lambda *_: {EAGER: 1.0, CUDA_GRAPH: 2.0})
    for _ in range(2):
        forward, report = autotune_forward(
            model, model, model, BATCH, FP32, {"model": "small"}, capture
        )
        assert forward is model
        assert (report.runner, report.reason) == (EAGER, "measured")
    assert len(captures) == 1


def test_failed_capture_falls_back_to_eager() -> None:
    model = SmallModel().train()
    captures: list[int] = []

    def capture(
        module: nn.Module, values: tuple[Tensor, ...], _: ComputeConfig
    ) -> cuda_graphs.ForwardFunction:
        captures.append(1)
        module(*values)
        raise RuntimeError("operation not permitted when stream is capturing\nat line 3")

    before = [buffer.clone() for buffer in model.buffers()]
    for _ in range(2):
        forward, report = autotune_forward(
            model, model, model, BATCH, FP32, {"model": "small"}, capture
        )
        assert forward is model
        assert report.runner == EAGER
        assert report.reason == "capture failed: operation not permitted when stream is capturing"
    assert len(captures) == 2
    assert all(map(torch.equal, model.buffers(), before))


class RecordingProgress(TrainingProgress):
    """Progress that records notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Record a note."""
        self.notes.append(text)


@pytest.mark.parametrize("fails", [False, True])
def test_training_with_graphs_equals_eager(
    fails: bool, parts: Path, random_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replayed: list[int] = []

    def capture(module: nn.Module, *_: Any) -> cuda_graphs.ForwardFunction:
        if fails:
            raise RuntimeError("cannot be captured")

        def forward(*values: Tensor) -> Tensor:
            replayed.append(len(values[0]))
            logits: Tensor = module(*values)
            return logits

        return forward

    runs, notes = (
        [RunDirectory(tmp_path / name) for name in ("eager", "graphed")],
        RecordingProgress(),
    )
    for run in runs:
        config = FinetuneConfig(
            parts, run.path, ARCHITECTURE, str(random_weights), IMAGE_SIZE,
            device="cpu", precision="fp32", epochs=2, finetune_epochs=2, batch_norm="train",
            batch_size=16, mixup=0.2, ema=0.5,
        )  # fmt: skip
        finetune(config, notes)
        # The second run uses graphs.
        monkeypatch.setattr(phase_loop, "cuda_graph_skip_reason", lambda *_: None)
        monkeypatch.setattr(cuda_graphs, "capture_forward", capture)
        monkeypatch.setattr(
            cuda_graphs, "time_interleaved", lambda *_: {EAGER: 2.0, CUDA_GRAPH: 1.0}
        )
    assert runs[0].weights.read_bytes() == runs[1].weights.read_bytes()
    steps = [json.loads(run.metrics.read_text())["steps"] for run in runs]
    assert steps[0] == {
        f"phase{number}": {"runner": EAGER, "milliseconds": {}, "reason": "not on a GPU"}
        for number in (1, 2)
    }
    messages = [note for note in notes.notes if "CUDA graphs" in note]
    if fails:
        assert messages == [
            f"CUDA graphs of phase {number}: capture failed: cannot be captured. Its steps run eagerly."
            for number in (1, 2)
        ]
        assert {step["runner"] for step in steps[1].values()} == {EAGER}
    else:
        assert not messages
        assert {step["runner"] for step in steps[1].values()} == {CUDA_GRAPH}
        assert set(replayed) == {16}, "other batches run eagerly"
