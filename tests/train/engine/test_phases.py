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


def second(config: FinetuneConfig, train_accuracy: float | None, shift: float = 0.05) -> Phase:
    return resolve_phase(plan_phases(config, "3", 16)[-1], config, train_accuracy, lambda: shift)


def test_what_phase_1_left_to_learn_decides_how_far_phase_2_goes() -> None:
    near, between, far = (second(CONFIG, accuracy) for accuracy in (1.0, 0.9, 0.5))
    assert (near.epochs, near.lr) == (5, pytest.approx(2e-4))
    assert (between.epochs, between.lr) == (6, pytest.approx(5e-4))
    assert (far.epochs, far.lr) == (8, pytest.approx(1e-3))


@pytest.mark.parametrize(
    ("mode", "train_accuracy", "shift", "kept"),
    [
        ("auto", 0.99, 0.05, True), ("auto", 0.99, 0.4, False), ("auto", 0.97, 0.05, False), ("auto", None, 0.05, False),
        ("train", 1.0, 0.05, False), ("eval", 0.5, 0.4, True),
    ],
)  # fmt: skip
def test_statistics_that_fit_already_stay(
    mode: Any, train_accuracy: float | None, shift: float, kept: bool
) -> None:
    assert second(replace(CONFIG, batch_norm=mode), train_accuracy, shift).freeze_statistics is kept


def test_the_shift_is_measured_only_where_it_decides() -> None:
    def unwanted() -> float:
        raise AssertionError

    for config, accuracy in (
        (CONFIG, 0.5),
        (replace(CONFIG, batch_norm="train"), 1.0),
        (replace(CONFIG, batch_norm="eval"), 1.0),
    ):
        resolve_phase(plan_phases(config, "3", 16)[-1], config, accuracy, unwanted)


@given(st.floats(0, 1), st.floats(0, 1))
def test_more_to_learn_never_means_less_training(one: float, other: float) -> None:
    less, more = sorted((one, other))
    assert second(CONFIG, less).epochs >= second(CONFIG, more).epochs
    assert second(CONFIG, less).lr >= second(CONFIG, more).lr


def test_what_was_given_stays() -> None:
    given = replace(CONFIG, finetune_epochs=5, finetune_lr=1e-4)
    assert [
        (second(given, accuracy).epochs, second(given, accuracy).lr) for accuracy in (0.1, 1.0)
    ] == [(5, 1e-4)] * 2
    assert (
        second(replace(CONFIG, finetune_epochs=5), 0.1).epochs,
        second(replace(CONFIG, finetune_epochs=5), 0.1).lr,
    ) == (5, 1e-3)
    assert second(CONFIG, None) == plan_phases(CONFIG, "3", 16)[-1], (
        "without a phase 1 nothing is known"
    )


def test_the_classic_recipe_to_the_letter() -> None:
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
def test_a_batch_gives_about_32_steps(images: int, expected: int) -> None:
    assert default_batch_size(images) == expected


def test_from_nothing_everything_trains_in_one_phase() -> None:
    (phase,) = plan_phases(replace(CONFIG, weights="none", epochs=3, finetune_epochs=2), "3", 16)
    assert (phase.number, phase.epochs, phase.unfreeze, phase.freeze_statistics) == (
        1,
        5,
        "all",
        False,
    )
    with pytest.raises(ConfigError, match="--batch-size must be >= 2"):
        plan_phases(replace(CONFIG, weights="none"), "3", 1)
    assert all(phase.freeze_statistics for phase in plan_phases(CONFIG, "3", 1)), (
        "one image has no statistics"
    )
