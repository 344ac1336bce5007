from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.config.presets import get_presets
from edgetl.core.errors import ConfigError
from edgetl.train.engine.phases import Phase, default_batch_size, plan_phases, resolve_phase

CONFIG = FinetuneConfig(Path("data"))
CLASSIC = FinetuneConfig(Path("data"), **get_presets()["classic"])


def phase_2(config: FinetuneConfig, train_accuracy: float | None, shift: float = 0.05) -> Phase:
    return resolve_phase(plan_phases(config, "3", 16)[-1], config, train_accuracy, lambda: shift)


def test_phase_2_depends_on_train_accuracy() -> None:
    near, between, far = (phase_2(CONFIG, accuracy) for accuracy in (1.0, 0.9, 0.5))
    assert (near.epochs, near.lr) == (5, pytest.approx(2e-4))
    assert (between.epochs, between.lr) == (6, pytest.approx(5e-4))
    assert (far.epochs, far.lr) == (8, pytest.approx(1e-3))


@pytest.mark.parametrize(
    ("mode", "train_accuracy", "shift", "is_frozen"),
    [
        ("auto", 0.99, 0.05, True), ("auto", 0.99, 0.4, False),
        ("auto", 0.97, 0.05, False), ("auto", None, 0.05, False),
        ("train", 1.0, 0.05, False), ("eval", 0.5, 0.4, True),
    ],
)  # fmt: skip
def test_statistics_freeze_when_they_fit(
    mode: Any, train_accuracy: float | None, shift: float, is_frozen: bool
) -> None:
    assert (
        phase_2(replace(CONFIG, batch_norm=mode), train_accuracy, shift).freeze_statistics
        is is_frozen
    )


def test_shift_is_measured_only_when_needed() -> None:
    def fail() -> float:
        raise AssertionError

    for config, accuracy in (
        (CONFIG, 0.5),
        (replace(CONFIG, batch_norm="train"), 1.0),
        (replace(CONFIG, batch_norm="eval"), 1.0),
    ):
        resolve_phase(plan_phases(config, "3", 16)[-1], config, accuracy, fail)


@given(st.floats(0, 1), st.floats(0, 1))
def test_lower_accuracy_never_trains_less(left: float, right: float) -> None:
    less, more = sorted((left, right))
    assert phase_2(CONFIG, less).epochs >= phase_2(CONFIG, more).epochs
    assert phase_2(CONFIG, less).lr >= phase_2(CONFIG, more).lr


def test_configured_values_are_kept() -> None:
    configured = replace(CONFIG, finetune_epochs=5, finetune_lr=1e-4)
    assert [
        (phase_2(configured, accuracy).epochs, phase_2(configured, accuracy).lr)
        for accuracy in (0.1, 1.0)
    ] == [(5, 1e-4)] * 2
    assert (
        phase_2(replace(CONFIG, finetune_epochs=5), 0.1).epochs,
        phase_2(replace(CONFIG, finetune_epochs=5), 0.1).lr,
    ) == (5, 1e-3)
    assert phase_2(CONFIG, None) == plan_phases(CONFIG, "3", 16)[-1], (
        "without phase 1 nothing changes"
    )


def test_classic_recipe_is_exact() -> None:
    head, tail = (
        resolve_phase(phase, CLASSIC, 0.1, lambda: 0.0) for phase in plan_phases(CLASSIC, "3", 32)
    )
    assert head == Phase(1, 5, 1e-3, "head", freeze_statistics=True)
    assert tail == Phase(2, 5, 1e-5, "3", freeze_statistics=False)
    assert (CLASSIC.head_width, CLASSIC.batch_size, CLASSIC.schedule, CLASSIC.augment) == (
        128,
        32,
        "constant",
        "light",
    )


@pytest.mark.parametrize(
    ("images", "expected"), [(1, 16), (500, 16), (800, 32), (1000, 32), (2000, 64), (100_000, 64)]
)
def test_default_batch_size_targets_32_steps(images: int, expected: int) -> None:
    assert default_batch_size(images) == expected


def test_weights_none_trains_everything_in_one_phase() -> None:
    (phase,) = plan_phases(replace(CONFIG, weights="none", epochs=3, finetune_epochs=2), "3", 16)
    assert (phase.number, phase.epochs, phase.unfreeze, phase.freeze_statistics) == (
        1,
        5,
        "all",
        False,
    )
    with pytest.raises(ConfigError, match="batch_size must be >= 2"):
        plan_phases(replace(CONFIG, weights="none"), "3", 1)
    assert all(phase.freeze_statistics for phase in plan_phases(CONFIG, "3", 1)), (
        "one image gives no statistics"
    )
