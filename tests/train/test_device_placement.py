"""Complete training runs with fake tensors, which have a device but no values.

An operation on two devices raises an error, as on a GPU.
"""

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
from edgetl.train import finetune as finetune_module
from edgetl.train import setup
from edgetl.train.common.precision import ComputeConfig
from edgetl.train.engine import checkpoint, optim, trainer
from edgetl.train.engine.evaluation import evaluate
from edgetl.train.engine.phases import TrainablePhase
from edgetl.train.features import batches
from edgetl.train.features.batches import CachedBatches, StreamingBatches
from edgetl.train.features.store import FeatureStore
from edgetl.train.finetune import finetune
from edgetl.train.model import freezing
from tests.conftest import ARCHITECTURE, IMAGE_SIZE

GPU = torch.device("cuda", 0)
GIB = 2**30


class TrainingLog:
    """Log of a training run on the fake device."""

    def __init__(self) -> None:
        self.batch_sources: list[type] = []
        self.phases: list[int] = []
        self.trained_on: set[str] = set()
        self.saved: list[str] = []
        self.evaluated = 0


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that trains on a fake GPU with this much free memory and returns a log."""

    @contextmanager
    def patched(free_bytes: int, log: TrainingLog) -> Iterator[None]:
        with monkeypatch.context() as patch:
            _patch_device(patch, free_bytes)
            _patch_numbers(patch)
            _patch_files(patch, log)
            with FakeTensorMode(allow_non_fake_inputs=True):
                yield

    def train(config: FinetuneConfig, free_bytes: int = 64 * GIB) -> TrainingLog:
        log = TrainingLog()
        with patched(free_bytes, log):
            finetune(config)
        return log

    return train


def _patch_device(patch: pytest.MonkeyPatch, free_bytes: int) -> None:
    patch.setattr(setup, "choose_compute_config", lambda *_: ComputeConfig(GPU, "fp32"))
    state = torch.get_rng_state()
    for name, value in {
        "current_device": 0,
        "get_device_name": "fake",
        "get_rng_state": state,
        "max_memory_allocated": 0,
        "mem_get_info": (free_bytes, free_bytes),
        "set_rng_state": None,
        "synchronize": None,
    }.items():
        patch.setattr(torch.cuda, name, lambda *_, _value=value, **__: _value)
    # A new tensor, like a pinned one: in inference mode PyTorch would copy a fake constant.
    patch.setattr(Tensor, "pin_memory", lambda self: torch.empty_like(self))
    patch.setattr(nn.Module, "to", _module_to)
    patch.setattr(Tensor, "backward", _give_gradients)


def _give_gradients(loss: Tensor) -> None:
    # PyTorch's engine needs a real GPU, so the graph is traversed to set all gradients.
    assert loss.device == GPU
    stack = [loss.grad_fn]
    visited = set()
    while stack:
        node = stack.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        stack += [next_node for next_node, _ in node.next_functions]
        if hasattr(node, "variable"):
            node.variable.grad = torch.empty_like(node.variable)


_real_to = nn.Module.to


def _module_to(module: nn.Module, *arguments: Any, **options: Any) -> nn.Module:
    # PyTorch's version swaps the contents of a fake parameter in place, which fails while a fake
    # mode refers to it.
    if not options:
        return _real_to(module, *arguments)
    memory_format = options.pop("memory_format", None)

    def move(tensor: Tensor) -> Tensor:
        memory_options = (
            {"memory_format": memory_format} if tensor.dim() == 4 and memory_format else {}
        )
        return (
            tensor.detach().to(**options, **memory_options)
            if tensor.is_floating_point()
            else tensor.to(options.get("device"))
        )

    for submodule in module.modules():
        for name, parameter in submodule.named_parameters(recurse=False):
            submodule._parameters[name] = nn.Parameter(move(parameter), parameter.requires_grad)
        for name, buffer in submodule.named_buffers(recurse=False):
            submodule._buffers[name] = move(buffer)
    return module


def _patch_numbers(patch: pytest.MonkeyPatch) -> None:
    # Replace the few places that read values: losses become 1.0, checks succeed, digests are equal.
    def to_list(tensor: Tensor) -> Any:
        numbers: Any = 1
        for length in reversed(tensor.shape):
            numbers = [numbers] * length
        return numbers

    for name, method in {
        "numpy": lambda tensor: np.zeros(tuple(tensor.shape), np.int64),
        "tolist": to_list,
        "item": lambda _: 1.0,
        "__float__": lambda _: 1.0,
        "__int__": lambda _: 1,
        "__bool__": lambda _: True,
    }.items():
        patch.setattr(FakeTensor, name, method, raising=False)
    patch.setattr(torch, "allclose", lambda *_, **__: True)
    patch.setattr(torch, "bincount", lambda _, minlength: torch.ones(minlength, dtype=torch.int64))
    patch.setattr(freezing, "tensor_digest", lambda tensor: str(tuple(tensor.shape)))


def _patch_files(patch: pytest.MonkeyPatch, log: TrainingLog) -> None:
    def save_file(tensors: dict[str, Tensor], path: Path, metadata: Any = None) -> None:
        devices = {str(tensor.device) for tensor in tensors.values()}
        assert devices <= {"cpu"}, "only CPU tensors can be written"
        log.saved.append(path.name.strip(".").partition(".")[0])
        path.write_bytes(b"")

    def fail(*_: Any) -> Any:
        raise OSError("no space")

    train_phase = trainer.Trainer.train_phase

    def logged_train_phase(self: trainer.Trainer, phase: TrainablePhase, *arguments: Any) -> None:
        log.batch_sources.append(type(phase.batch_source))
        log.phases.append(phase.phase.number)
        log.trained_on |= {
            str(parameter.device) for parameter in self.context.adapted_model.model.parameters()
        }
        train_phase(self, phase, *arguments)

    def write_results(
        setup: Any, training: trainer.Trainer, last_phase: TrainablePhase, *_: Any
    ) -> None:
        model = training.context.adapted_model.model.eval()
        assert not model.training
        train = evaluate(last_phase.forward, last_phase.batch_source.iter_train_eval_batches())
        assert str(train.logits.device) == "cpu"
        log.evaluated = len(train.targets)

    patch.setattr(
        finetune_module, "prepare_run", _without_fake_tensors(finetune_module.prepare_run)
    )
    patch.setattr(checkpoint, "save_file", save_file)
    patch.setattr(FeatureStore, "create", fail)
    patch.setattr(trainer, "CHECKPOINT_INTERVAL_S", 0.0)
    patch.setattr(trainer.Trainer, "train_phase", logged_train_phase)
    patch.setattr(finetune_module, "write_results", write_results)


def _without_fake_tensors(function: Callable[..., Any]) -> Callable[..., Any]:
    # Functions that read files work with values, on the CPU.
    def wrapped(*arguments: Any) -> Any:
        with unset_fake_temporarily():
            return function(*arguments)

    return wrapped


@pytest.fixture
def config(
    parts: Path, random_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> FinetuneConfig:
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "cache"))
    return FinetuneConfig(
        parts,
        tmp_path / "run",
        ARCHITECTURE,
        str(random_weights),
        IMAGE_SIZE,
        epochs=1,
        finetune_epochs=1,
        batch_size=24,
        batch_norm="train",
        workers=0,
    )


MIXED_OPTIONS: dict[str, Any] = {
    "mixup": 0.2,
    "cutmix": 0.5,
    "ema": 0.9,
    "class_weights": "balanced",
    "clip_gradient": 1.0,
}


@pytest.mark.parametrize(
    ("changes", "free_bytes"),
    [
        pytest.param(MIXED_OPTIONS, 64 * GIB, id="features on the GPU"),
        pytest.param({}, 0, id="features on the CPU", marks=pytest.mark.slow),
    ],
)
def test_cached_training_stays_on_the_gpu(
    changes: dict[str, Any],
    free_bytes: int,
    config: FinetuneConfig,
    fake_gpu: Callable[..., TrainingLog],
) -> None:
    log = fake_gpu(replace(config, **changes), free_bytes)
    assert log.batch_sources == [CachedBatches, CachedBatches]
    assert log.phases == [1, 2]
    assert log.trained_on == {"cuda:0"}
    assert {"weights", "state"} <= set(log.saved)
    assert log.evaluated > 0


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(MIXED_OPTIONS, id="new views"),
        pytest.param({"views": 2}, id="repeated views", marks=pytest.mark.slow),
    ],
)
def test_streamed_training_stays_on_the_gpu(
    changes: dict[str, Any], config: FinetuneConfig, fake_gpu: Callable[..., TrainingLog]
) -> None:
    log = fake_gpu(replace(config, cache_budget=0, **changes))
    assert log.batch_sources == [StreamingBatches, StreamingBatches]
    assert log.trained_on == {"cuda:0"}
    assert {"weights", "state"} <= set(log.saved)
    assert log.evaluated > 0


@pytest.mark.slow
def test_training_without_weights_stays_on_the_gpu(
    config: FinetuneConfig, fake_gpu: Callable[..., TrainingLog]
) -> None:
    log = fake_gpu(replace(config, weights="none"))
    assert (log.batch_sources, log.phases) == ([StreamingBatches], [1])
    assert log.trained_on == {"cuda:0"}


def stay_on_cpu(tensor: Tensor, _: torch.device) -> Tensor:
    return tensor


@pytest.mark.parametrize(
    ("module", "changes"),
    [(batches, {}), (optim, MIXED_OPTIONS)],
    ids=["batches", "mixup and class weights"],
)
def test_missing_transfer_to_the_gpu_is_detected(
    module: Any,
    changes: dict[str, Any],
    config: FinetuneConfig,
    fake_gpu: Callable[..., TrainingLog],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "copy_to_device", stay_on_cpu)
    with pytest.raises(RuntimeError, match=r"two (different )?devices|least two devices"):
        fake_gpu(replace(config, **changes), 0)


def test_saving_gpu_tensors_is_detected(
    config: FinetuneConfig, fake_gpu: Callable[..., TrainingLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tensor, "cpu", lambda tensor: tensor)
    with pytest.raises(AssertionError, match=r"only CPU tensors can be written"):
        fake_gpu(config)
