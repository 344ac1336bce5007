"""Equal runs: PyTorch is asked for deterministic algorithms, and what they cost on a GPU is measured and reported.

A CPU's algorithms are deterministic as they are. See PyTorch's notes on reproducibility.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from edgetl.core.errors import ConfigError
from edgetl.train.common.precision import measure_step_ms
from edgetl.train.common.progress import Progress
from edgetl.train.engine.phase_builder import TrainablePhase
from edgetl.train.model.factory import AdaptedModel
from edgetl.train.model.freezing import set_trainable


@contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Only deterministic algorithms inside the block, which must begin before anything is computed on a GPU."""
    before, tries = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if wanted:
        # cuBLAS reads it when it begins.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        # It writes NaN into every new tensor, a launch each, to expose programs that read what they never wrote. Equal runs need none.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(wanted or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = tries
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]


def report_determinism_cost(
    stage: TrainablePhase, adapted: AdaptedModel, progress: Progress
) -> None:
    """Time a step with and without, and say so.

    Raises:
        ConfigError: an operator of the network has no deterministic algorithm.
    """
    if stage.compute_config.device.type == "cpu":
        progress.note(
            "--deterministic: nothing is decided by timing; PyTorch computes frozen blocks and training steps in one precision."
        )
        return
    set_trainable(adapted, stage.phase.unfreeze, stage.phase.freeze_statistics).train_mode()
    values, labels = next(iter(stage.batch_source.iter_train_batches(1)))
    ratio = measure_slowdown(
        lambda: min(
            measure_step_ms(
                adapted.model, stage.forward, values, labels, stage.compute_config
            ).values()
        )
    )
    progress.note(f"--deterministic: a step takes {ratio:.2f} times as long as without.")


def measure_slowdown(step: Callable[[], float]) -> float:
    """How many times as long a step takes with deterministic algorithms.

    Args:
        step: its time in any unit.

    Raises:
        ConfigError: an operator has no deterministic algorithm.
    """
    try:
        with deterministic_algorithms(True):
            slow = step()
    except RuntimeError as cause:
        if "deterministic" not in str(cause):
            raise
        raise ConfigError(
            f"--deterministic: {str(cause).split('.')[0]}. Leave it out, or take another --model."
        ) from cause
    with _nondeterministic_algorithms():
        return slow / step()


@contextmanager
def _nondeterministic_algorithms() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
