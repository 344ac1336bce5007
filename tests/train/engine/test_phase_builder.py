"""Phase builder: cached and streamed training are equal, and the cache is keyed correctly."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import ExportError
from edgetl.core.files import sha256_file
from edgetl.core.paths import RunDirectory
from edgetl.core.progress import TrainingProgress
from edgetl.train.engine.phase_builder import PhaseBuilder
from edgetl.train.features.batches import (
    Batch,
    BatchSource,
    CachedBatches,
    EpochSampler,
    StreamingBatches,
)
from edgetl.train.features.extractor import FeatureExtractor, make_extractor
from edgetl.train.finetune import finetune
from tests.helpers.trained_runs import load_model

MakeImages = Callable[..., Path]


class RecordingProgress(TrainingProgress):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.feature_passes = 0

    def note(self, text: str) -> None:
        self.notes.append(text)

    def on_progress(self, step: str, done: int, total: int) -> None:
        self.feature_passes += step == "running frozen blocks" and done == total


@pytest.fixture
def config(
    make_images: MakeImages, random_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> FinetuneConfig:
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "cache"))
    return FinetuneConfig(
        data=make_images("data", ["a", "b", "c"], count=8),
        output=tmp_path / "run",
        model="mobilenet_v3_small",
        weights=str(random_weights),
        image_size=32,
        epochs=2,
        finetune_epochs=3,
        batch_size=6,
        views=3,
        precision="fp32",
    )


def collect_batches(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> dict[int, list[list[Batch]]]:
    """Return the batches of each phase by epoch, then those of validation and evaluation."""
    batches: dict[int, list[list[Batch]]] = {}
    kinds: set[type] = set()
    original = PhaseBuilder.build_phases

    def record(self: PhaseBuilder) -> Any:
        phases = original(self)
        for trainable in phases:
            source: BatchSource = trainable.batch_source
            kinds.add(type(source))
            batches[trainable.phase.number] = [
                list(source.iter_train_batches(epoch)) for epoch in range(1, 6)
            ] + [
                list(source.iter_val_batches()),
                list(source.iter_train_eval_batches()),
            ]
        return phases

    with monkeypatch.context() as patch:
        patch.setattr(PhaseBuilder, "build_phases", record)
        finetune(replace(config, force=True))
    assert len(kinds) == 1
    assert kinds == {CachedBatches if config.cache_budget is None else StreamingBatches}
    return batches


@pytest.mark.parametrize("batch_norm", ["eval", pytest.param("train", marks=pytest.mark.slow)])
def test_cached_and_streamed_batches_are_equal(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch, batch_norm: Any
) -> None:
    config = replace(config, batch_norm=batch_norm)
    cached, reused, streamed = (
        collect_batches(replace(config, cache_budget=budget), monkeypatch)
        for budget in (None, None, 0)
    )
    for phase in (1, 2):
        assert len(cached[phase]) == len(streamed[phase]) == 7
        for left, middle, right in zip(cached[phase], reused[phase], streamed[phase], strict=True):
            for (values, labels), (reused_values, reused_labels), (
                expected,
                expected_labels,
            ) in zip(left, middle, right, strict=True):
                assert torch.equal(labels, expected_labels)
                assert torch.equal(labels, reused_labels)
                assert all(
                    torch.equal(value, other)
                    for value, other in zip(values, reused_values, strict=True)
                ), "reused unchanged"
                for value, other in zip(values, expected, strict=True):
                    # Other batch sizes use other kernels, so the last bits of sums differ.
                    torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-4)


def epochs(run: RunDirectory) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.history.read_text().splitlines()]


def test_cached_and_streamed_training_are_equal(config: FinetuneConfig, tmp_path: Path) -> None:
    # Without dropout all random numbers are equal, and only rounding differs.
    config = replace(config, dropout=0.0, augment="none")
    cached, streamed = (
        finetune(config),
        finetune(replace(config, cache_budget=0, output=tmp_path / "streamed")),
    )
    for left, right in zip(epochs(cached), epochs(streamed), strict=True):
        assert left["train_loss"] == pytest.approx(right["train_loss"], rel=1e-3)
        assert left["val_loss"] == pytest.approx(right["val_loss"], rel=1e-3)


def test_later_run_reuses_the_cache(config: FinetuneConfig, tmp_path: Path) -> None:
    first, second = RecordingProgress(), RecordingProgress()
    first_run = finetune(config, first)
    second_run = finetune(replace(config, output=tmp_path / "again"), second)
    assert (first.feature_passes, second.feature_passes) == (1, 0)
    assert any("cached by an earlier run" in text for text in second.notes)
    assert sha256_file(first_run.weights) == sha256_file(second_run.weights)
    metrics = [json.loads(run.metrics.read_text()) for run in (first_run, second_run)]
    assert [content["frozen_blocks"]["cache"] for content in metrics] == ["filled", "reused"]
    assert metrics[0]["val"] == metrics[1]["val"]


@pytest.mark.parametrize(
    "change",
    [
        "image",
        *(
            pytest.param(change, marks=pytest.mark.slow)
            for change in ("weights", "augment", "seed", "views", "size", "unfreeze")
        ),
    ],
)
def test_cache_is_not_reused_when_inputs_change(
    config: FinetuneConfig, tmp_path: Path, change: str, random_weights: Path
) -> None:
    finetune(config)
    other = replace(config, output=tmp_path / "other")
    if change == "image":
        path = next(iter(sorted((config.data / "a").iterdir())))
        path.write_bytes(sorted((config.data / "b").iterdir())[0].read_bytes())
    elif change == "weights":
        from safetensors.torch import load_file, save_file

        tensors: dict[str, Tensor] = load_file(random_weights)
        tensors["features.0.0.weight"] = tensors["features.0.0.weight"] + 0.01
        save_file(tensors, tmp_path / "other.safetensors")
        other = replace(other, weights=str(tmp_path / "other.safetensors"))
    else:
        values = {
            "seed": {"seed": 1},
            "augment": {"augment": "medium"},
            "views": {"views": 2},
            "size": {"image_size": 64},
        }
        other = replace(other, **(values.get(change) or {"unfreeze": "1"}))  # type: ignore[arg-type]
    progress = RecordingProgress()
    finetune(other, progress)
    assert progress.feature_passes == 1


def test_damaged_cache_is_recomputed(config: FinetuneConfig, tmp_path: Path) -> None:
    run = finetune(config)
    for file in (tmp_path / "cache/activations").rglob("train-0.bin"):
        file.write_bytes(file.read_bytes()[:-1])
    progress = RecordingProgress()
    again = finetune(replace(config, output=tmp_path / "again"), progress)
    assert progress.feature_passes == 1
    assert sha256_file(run.weights) == sha256_file(again.weights)


def test_images_are_streamed_when_budget_is_small(config: FinetuneConfig, tmp_path: Path) -> None:
    progress = RecordingProgress()
    run = finetune(replace(config, cache_budget=10_000), progress)
    assert any("views need" in text and "--cache-budget" in text for text in progress.notes)
    assert not list((tmp_path / "cache").glob("activations/*"))
    assert json.loads(run.metrics.read_text())["frozen_blocks"]["cache"] == "none"


def test_views_are_reduced_to_fit_the_budget(config: FinetuneConfig, tmp_path: Path) -> None:
    # Features at the cut before the last two blocks at 32 pixels, and those of the head.
    image_bytes = (96 + 1024) * 4
    progress = RecordingProgress()
    finetune(
        replace(config, views=None, unfreeze="2", cache_budget=image_bytes * (18 * 2 + 6) + 100),
        progress,
    )
    metas = [
        json.loads(meta.read_text()) for meta in (tmp_path / "cache/activations").rglob("meta.json")
    ]
    assert [meta["train"][0]["shape"][:2] for meta in metas] == [[2, 18], [2, 18]]
    assert any("holds 2 of 3 views" in text for text in progress.notes)


def test_images_are_streamed_when_nothing_is_frozen(config: FinetuneConfig) -> None:
    progress = RecordingProgress()
    run = finetune(replace(config, epochs=0, unfreeze="all", batch_norm="train"), progress)
    assert any("Phase 2 has no frozen blocks" in text for text in progress.notes)
    assert len(epochs(run)) == 3
    assert progress.feature_passes == 0


def test_unsupported_subgraph_falls_back_to_pytorch(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rejected = []

    def make_or_raise(
        name: str, subgraph: Any, example: Any, compute_config: Any
    ) -> FeatureExtractor:
        if example[0].shape[1] != 3:
            rejected.append(name)
            raise ExportError("unsupported operator")
        return make_extractor(name, subgraph, example, compute_config)

    monkeypatch.setattr("edgetl.train.engine.split_model.make_extractor", make_or_raise)
    assert len(epochs(finetune(config))) == 5
    assert rejected


def test_features_stay_in_memory_without_cache_folder(
    config: FinetuneConfig, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file where the folder would be")
    run = finetune(config)
    assert len(epochs(run)) == 5
    assert json.loads(run.metrics.read_text())["frozen_blocks"]["cache"] == "filled"


def test_cached_run_has_weights_of_whole_model(config: FinetuneConfig) -> None:
    run = finetune(config)
    metrics = json.loads(run.metrics.read_text())
    model = load_model(run)
    best = max((record for record in epochs(run)), key=lambda record: record["val_accuracy"])
    assert metrics["val"]["accuracy"] == best["val_accuracy"]
    assert all(parameter.dtype == torch.float32 for parameter in model.model.parameters())


LABELS = torch.tensor([0] * 12 + [1] * 3 + [2])


def test_sampler_uses_every_image_once_per_epoch() -> None:
    sampler = EpochSampler(LABELS, "shuffled", 4, seed=3)
    once, again, other = (
        sampler.sample_batches(1),
        sampler.sample_batches(1),
        sampler.sample_batches(2),
    )
    assert once == again != other
    assert sorted(position for batch in once for position in batch) == list(range(16))
    assert len(once) == sampler.steps_per_epoch
    assert EpochSampler(LABELS, "shuffled", 4, seed=4).sample_batches(1) != once


def test_balanced_sampling_is_equal_per_class() -> None:
    sampler = EpochSampler(LABELS, "balanced", 4, seed=3)
    for epoch in (1, 2):
        positions = [position for batch in sampler.sample_batches(epoch) for position in batch]
        assert len(positions) == 16
        counts = torch.bincount(LABELS[positions], minlength=3)
        assert counts.max() - counts.min() <= 2
        assert {position for position in positions if LABELS[position] == 1} == {12, 13, 14}
