"""A whole training with tensors that know their device and hold no numbers: an operation on two devices raises as on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

from edgetl.core.config.finetune import FinetuneConfig
from edgetl.train import finetune as finetuning
from edgetl.train import setup
from edgetl.train.common.precision import ComputeConfig
from edgetl.train.engine import checkpoint, optim, trainer
from edgetl.train.engine.evaluation import evaluate
from edgetl.train.engine.phase_builder import TrainablePhase
from edgetl.train.features import batches
from edgetl.train.features.batches import CachedBatches, StreamingBatches
from edgetl.train.features.store import FeatureStore
from edgetl.train.finetune import finetune
from edgetl.train.model import freezing
from tests.conftest import ARCHITECTURE, IMAGE_SIZE

GPU = torch.device("cuda", 0)
GIB = 2**30


class Watched:
    """What a training on the fake device has come through."""

    def __init__(self) -> None:
        self.feeds: list[type] = []
        self.phases: list[int] = []
        self.trained_on: set[str] = set()
        self.saved: list[str] = []
        self.evaluated = 0


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A function that trains a configuration on a fake GPU with so much free memory, and tells what it came through."""

    @contextmanager
    def patched(free_bytes: int, watched: Watched) -> Iterator[None]:
        with monkeypatch.context() as patch:
            _patch_device(patch, free_bytes)
            _patch_numbers(patch)
            _patch_files(patch, watched)
            with FakeTensorMode(allow_non_fake_inputs=True):
                yield

    def train(config: FinetuneConfig, free_bytes: int = 64 * GIB) -> Watched:
        watched = Watched()
        with patched(free_bytes, watched):
            finetune(config)
        return watched

    return train


def _patch_device(patch: pytest.MonkeyPatch, free_bytes: int) -> None:
    patch.setattr(setup, "choose_compute_config", lambda *_: ComputeConfig(GPU, "fp32"))
    state = torch.get_rng_state()
    for name, answer in {
        "current_device": 0,
        "get_device_name": "fake",
        "get_rng_state": state,
        "max_memory_allocated": 0,
        "mem_get_info": (free_bytes, free_bytes),
        "set_rng_state": None,
        "synchronize": None,
    }.items():
        patch.setattr(torch.cuda, name, lambda *_, _answer=answer, **__: _answer)
    # A new tensor, as pinning gives: in inference mode PyTorch would copy a fake constant for real.
    patch.setattr(Tensor, "pin_memory", lambda self: torch.empty_like(self))
    patch.setattr(nn.Module, "to", _module_to)
    patch.setattr(Tensor, "backward", _give_gradients)


def _give_gradients(loss: Tensor) -> None:
    # PyTorch's engine asks for a real GPU; what it would reach is found by walking the graph.
    assert loss.device == GPU
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
        if hasattr(node, "variable"):
            node.variable.grad = torch.empty_like(node.variable)


_real_to = nn.Module.to


def _module_to(module: nn.Module, *given: Any, **options: Any) -> nn.Module:
    # PyTorch's own swaps a fake parameter's contents in place, which fails where a fake mode still refers to it.
    if not options:
        return _real_to(module, *given)
    memory_format = options.pop("memory_format", None)

    def moved(tensor: Tensor) -> Tensor:
        wanted = {"memory_format": memory_format} if tensor.dim() == 4 and memory_format else {}
        return (
            tensor.detach().to(**options, **wanted)
            if tensor.is_floating_point()
            else tensor.to(options.get("device"))
        )

    for inner in module.modules():
        for name, parameter in inner.named_parameters(recurse=False):
            inner._parameters[name] = nn.Parameter(moved(parameter), parameter.requires_grad)
        for name, buffer in inner.named_buffers(recurse=False):
            inner._buffers[name] = moved(buffer)
    return module


def _patch_numbers(patch: pytest.MonkeyPatch) -> None:
    # The few places that read numbers: fake tensors hold none. Losses become 1.0, checks succeed, digests agree.
    def listed(tensor: Tensor) -> Any:
        numbers: Any = 1
        for length in reversed(tensor.shape):
            numbers = [numbers] * length
        return numbers

    for name, method in {
        "numpy": lambda tensor: np.zeros(tuple(tensor.shape), np.int64),
        "tolist": listed,
        "item": lambda _: 1.0,
        "__float__": lambda _: 1.0,
        "__int__": lambda _: 1,
        "__bool__": lambda _: True,
    }.items():
        patch.setattr(FakeTensor, name, method, raising=False)
    patch.setattr(torch, "allclose", lambda *_, **__: True)
    patch.setattr(torch, "bincount", lambda _, minlength: torch.ones(minlength, dtype=torch.int64))
    patch.setattr(freezing, "tensor_digest", lambda tensor: str(tuple(tensor.shape)))


def _patch_files(patch: pytest.MonkeyPatch, watched: Watched) -> None:
    def save_file(tensors: dict[str, Tensor], path: Path, metadata: Any = None) -> None:
        devices = {str(tensor.device) for tensor in tensors.values()}
        assert devices <= {"cpu"}, "only the CPU's tensors can be written"
        watched.saved.append(path.name.strip(".").partition(".")[0])
        path.write_bytes(b"")

    def no_room(*_: Any) -> Any:
        raise OSError("no room")

    run_stage = trainer.Trainer.run_phase

    def watched_stage(self: trainer.Trainer, stage: TrainablePhase, *given: Any) -> None:
        watched.feeds.append(type(stage.batch_source))
        watched.phases.append(stage.phase.number)
        watched.trained_on |= {
            str(parameter.device) for parameter in self.adapted_model.model.parameters()
        }
        run_stage(self, stage, *given)

    def write_results(
        prepared: Any, training: trainer.Trainer, last: TrainablePhase, *_: Any
    ) -> None:
        network = training.adapted_model.model.eval()
        assert not network.training
        train = evaluate(last.forward, last.batch_source.iter_train_eval_batches())
        assert str(train.logits.device) == "cpu"
        watched.evaluated = len(train.targets)

    patch.setattr(finetuning, "prepare_run", _for_real(finetuning.prepare_run))
    patch.setattr(checkpoint, "save_file", save_file)
    patch.setattr(FeatureStore, "create", no_room)
    patch.setattr(trainer, "CHECKPOINT_INTERVAL_S", 0.0)
    patch.setattr(trainer.Trainer, "run_phase", watched_stage)
    patch.setattr(finetuning, "write_results", write_results)


def _for_real(function: Callable[..., Any]) -> Callable[..., Any]:
    # What reads files works with numbers, on the CPU.
    def wrapped(*given: Any) -> Any:
        with unset_fake_temporarily():
            return function(*given)

    return wrapped


@pytest.fixture
def config(
    parts: Path, random_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> FinetuneConfig:
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "cache"))
    return FinetuneConfig(
        parts, tmp_path / "run", ARCHITECTURE, str(random_weights), IMAGE_SIZE, epochs=1, finetune_epochs=1, batch_size=24,
        batch_norm="train", workers=0,
    )  # fmt: skip


MIXED: dict[str, Any] = {
    "mixup": 0.2,
    "cutmix": 0.5,
    "ema": 0.9,
    "class_weights": "balanced",
    "clip_gradient": 1.0,
}


@pytest.mark.parametrize(
    ("changes", "free_bytes"),
    [(MIXED, 64 * GIB), ({}, 0)],
    ids=["values on the GPU", "values on the CPU"],
)
def test_cached_training_stays_on_the_gpu(
    changes: dict[str, Any],
    free_bytes: int,
    config: FinetuneConfig,
    fake_gpu: Callable[..., Watched],
) -> None:
    watched = fake_gpu(replace(config, **changes), free_bytes)
    assert watched.feeds == [CachedBatches, CachedBatches]
    assert watched.phases == [1, 2]
    assert watched.trained_on == {"cuda:0"}
    assert {"weights", "state"} <= set(watched.saved)
    assert watched.evaluated > 0


@pytest.mark.parametrize(
    "changes", [MIXED, {"views": 2}], ids=["new views", "views that come again"]
)
def test_streamed_training_stays_on_the_gpu(
    changes: dict[str, Any], config: FinetuneConfig, fake_gpu: Callable[..., Watched]
) -> None:
    watched = fake_gpu(replace(config, cache_budget=0, **changes))
    assert watched.feeds == [StreamingBatches, StreamingBatches]
    assert watched.trained_on == {"cuda:0"}
    assert {"weights", "state"} <= set(watched.saved)
    assert watched.evaluated > 0


def test_training_from_nothing_stays_on_the_gpu(
    config: FinetuneConfig, fake_gpu: Callable[..., Watched]
) -> None:
    watched = fake_gpu(replace(config, weights="none"))
    assert (watched.feeds, watched.phases) == ([StreamingBatches], [1])
    assert watched.trained_on == {"cuda:0"}


def on_the_cpu(tensor: Tensor, _: torch.device) -> Tensor:
    return tensor


@pytest.mark.parametrize(
    ("module", "changes"),
    [(batches, {}), (optim, MIXED)],
    ids=["batches", "mixing and weights"],
)
def test_a_forgotten_transfer_is_found(
    module: Any,
    changes: dict[str, Any],
    config: FinetuneConfig,
    fake_gpu: Callable[..., Watched],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "copy_to_device", on_the_cpu)
    with pytest.raises(RuntimeError, match=r"two (different )?devices|least two devices"):
        fake_gpu(replace(config, **changes), 0)


def test_weights_that_stay_on_the_gpu_cannot_be_saved(
    config: FinetuneConfig, fake_gpu: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tensor, "cpu", lambda tensor: tensor)
    with pytest.raises(AssertionError, match=r"only the CPU's tensors can be written"):
        fake_gpu(config)
