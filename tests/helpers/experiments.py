"""Synthetic experiments."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

from edgetl.core.artifacts.device import DeviceInfo
from edgetl.core.artifacts.experiment import (
    DeployedModel,
    Experiment,
    ExperimentConfig,
    ExperimentData,
)
from edgetl.core.artifacts.experiment_runs import StrategyEpoch, StrategyRun
from edgetl.core.config.compare import CompareConfig
from edgetl.core.config.finetune import FinetuneConfig

IMAGES = 200


def made_run(
    network: str,
    strategy: str,
    accuracy: float,
    seconds: float,
    seed: int = 0,
    failed: str | None = None,
) -> StrategyRun:
    """Return a run of four epochs whose accuracy rises linearly, on the images of all runs."""
    architecture, _, size = network.rpartition("-")
    name = f"{network}-{strategy}"
    identity = {
        "name": f"{name}-s{seed}",
        "row": name,
        "architecture": architecture,
        "image_size": int(size),
        "strategy": strategy,
        "seed": seed,
        "folder": f"runs/{name}-s{seed}",
    }
    if failed is not None:
        return StrategyRun(**identity, failed=failed)
    order = random.Random(f"{seed}{strategy}").sample(range(IMAGES), IMAGES)
    # 80% of the correct images are the same for all runs, the rest is random.
    right = {*range(round(0.8 * accuracy * IMAGES))}
    for index in order:
        if len(right) >= round(accuracy * IMAGES):
            break
        right.add(index)
    correct = "".join("1" if index in right else "0" for index in range(IMAGES))
    hits = [
        sum(correct[index] == "1" for index in range(IMAGES) if index % 2 == label)
        for label in (0, 1)
    ]
    epochs = tuple(
        StrategyEpoch(
            1 if number < 3 else 2,
            seconds * number / 4,
            accuracy * number / 4,
            accuracy * number / 4,
        )
        for number in range(1, 5)
    )
    return StrategyRun(
        **identity,
        seconds=seconds,
        train_images=300,
        train_accuracy=min(1.0, accuracy + 0.05),
        macro_f1=accuracy,
        best_epoch=4,
        trainable=10_000,
        parameters=2_000_000,
        peak_memory_bytes=10**9,
        device="cpu",
        precision="fp32",
        weights="imagenet",
        epochs=epochs,
        correct=correct,
        confusion=((hits[0], IMAGES // 2 - hits[0]), (IMAGES // 2 - hits[1], hits[1])),
    )


def made_experiment(
    rows: Mapping[str, tuple[float, float]],
    seeds: int = 1,
    deployed: tuple[DeployedModel, ...] = (),
    folder: Path = Path(),
    more: tuple[StrategyRun, ...] = (),
) -> Experiment:
    """Return an experiment.

    Args:
        rows: (accuracy, seconds) by `network/strategy`.
        seeds: number of runs per row.
        deployed: deployed models.
        folder: folder of the experiment.
        more: additional runs.
    """
    runs = tuple(
        made_run(*name.split("/"), accuracy, seconds, seed)
        for name, (accuracy, seconds) in rows.items()
        for seed in range(seeds)
    )
    return Experiment(
        created="2026-01-02T03:04:05+00:00",
        edgetl="0.1.0",
        device=DeviceInfo(cpu="Test CPU", host="here"),
        config=ExperimentConfig(
            CompareConfig(Path(), epochs=4, seeds=seeds), FinetuneConfig(Path("/photos/pets"))
        ),
        classes=("cat", "dog"),
        data=ExperimentData(
            fingerprint="0" * 64,
            counts={"train": {"cat": 150, "dog": 150}, "val": {"cat": 100, "dog": 100}},
            folder="pets",
        ),
        planned=tuple(run.name for run in (*runs, *more)),
        runs=(*runs, *more),
        deployed_models=deployed,
        folder=folder,
    )
