"""Deterministic algorithms in PyTorch, and their measured cost on a GPU.

On a CPU the algorithms are deterministic anyway. See PyTorch's notes on reproducibility.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import ConfigError
from edgetl.core.progress import TrainingProgress
from edgetl.train.common.precision import measure_step_ms
from edgetl.train.engine.phases import TrainablePhase
from edgetl.train.model.factory import AdaptedModel
from edgetl.train.model.freezing import set_trainable


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Use only deterministic algorithms inside the block, if `enabled`.

    The block must begin before anything is computed on a GPU.
    """
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    cudnn_benchmark = torch.backends.cudnn.benchmark
    fill_memory = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if enabled:
        # cuBLAS reads the variable when it is initialized.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        # PyTorch would fill every new tensor with NaN, one kernel launch each, to expose reads of
        # uninitialized memory. Reproducible runs do not need it.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(enabled or was_deterministic)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_deterministic)
        torch.backends.cudnn.benchmark = cudnn_benchmark
        torch.utils.deterministic.fill_uninitialized_memory = fill_memory  # type: ignore[attr-defined]


def report_determinism_cost(
    trainable: TrainablePhase, adapted: AdaptedModel, progress: TrainingProgress
) -> None:
    """Report how much slower a training step is with deterministic algorithms.

    Raises:
        ConfigError: if an operator of the model has no deterministic algorithm.
    """
    if trainable.compute_config.device.type == "cpu":
        progress.note(
            "--deterministic: nothing is chosen by timing. "
            "PyTorch computes frozen blocks and training steps in one precision."
        )
        return
    phase = trainable.phase
    set_trainable(adapted, phase.unfreeze, phase.freeze_statistics).train_mode()
    values, labels = next(iter(trainable.batch_source.iter_train_batches(1)))

    def measure_step() -> float:
        step_ms = measure_step_ms(
            adapted.model, trainable.forward, values, labels, trainable.compute_config
        )
        return min(step_ms.values())

    slowdown = measure_slowdown(measure_step)
    progress.note(f"--deterministic: a training step takes {slowdown:.2f} times as long.")


def measure_slowdown(measure_step: Callable[[], float]) -> float:
    """Return the ratio of a step's times with and without deterministic algorithms.

    Args:
        measure_step: returns the time of a step, in any unit.

    Raises:
        ConfigError: if an operator has no deterministic algorithm.
    """
    try:
        with deterministic_algorithms(True):
            deterministic_time = measure_step()
    except RuntimeError as cause:
        if "deterministic" not in str(cause):
            raise
        raise ConfigError(
            f"{{deterministic}}: {str(cause).split('.')[0]}. Omit it, or use another {{model}}.",
            FinetuneConfig,
        ) from cause
    with _nondeterministic_algorithms():
        return deterministic_time / measure_step()


@contextmanager
def _nondeterministic_algorithms() -> Iterator[None]:
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_deterministic)
