"""Cached and streamed training see the same tensors, and what is cached belongs to what it was made from."""

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
from edgetl.train.common.progress import NullProgress
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
from edgetl.train.model.factory import load_run_model

MakeImages = Callable[..., Path]


class Notes(NullProgress):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.prepared_in_all = 0

    def note(self, text: str) -> None:
        self.notes.append(text)

    def on_features_computed(self, done: int, total: int) -> None:
        self.prepared_in_all += done == total


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


def stages_of(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> dict[int, list[list[Batch]]]:
    """Every batch that the phases are fed with: phase to epochs to batches, the validation images as the last epoch."""
    seen: dict[int, list[list[Batch]]] = {}
    kinds: set[type] = set()
    original = PhaseBuilder.build_phases

    def watched(self: PhaseBuilder) -> Any:
        stages = original(self)
        for stage in stages:
            feed: BatchSource = stage.batch_source
            kinds.add(type(feed))
            seen[stage.phase.number] = [
                list(feed.iter_train_batches(epoch)) for epoch in range(1, 6)
            ] + [
                list(feed.iter_val_batches()),
                list(feed.iter_train_eval_batches()),
            ]
        return stages

    with monkeypatch.context() as patch:
        patch.setattr(PhaseBuilder, "build_phases", watched)
        finetune(replace(config, force=True))
    assert len(kinds) == 1
    assert kinds == {CachedBatches if config.cache_budget is None else StreamingBatches}
    return seen


@pytest.mark.parametrize("batch_norm", ["eval", "train"])
def test_cached_and_streamed_training_see_the_same_tensors(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch, batch_norm: Any
) -> None:
    config = replace(config, batch_norm=batch_norm)
    cached, again, streamed = (
        stages_of(replace(config, cache_budget=budget), monkeypatch) for budget in (None, None, 0)
    )
    for phase in (1, 2):
        assert len(cached[phase]) == len(streamed[phase]) == 7
        for left, middle, right in zip(cached[phase], again[phase], streamed[phase], strict=True):
            for (values, labels), (found, found_labels), (expected, expected_labels) in zip(
                left, middle, right, strict=True
            ):
                assert torch.equal(labels, expected_labels)
                assert torch.equal(labels, found_labels)
                assert all(
                    torch.equal(value, other) for value, other in zip(values, found, strict=True)
                ), "reused as it was"
                for value, other in zip(values, expected, strict=True):
                    # Batches of other sizes take other kernels: the sums' last bits differ.
                    torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-4)


def epochs(run: RunDirectory) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.history.read_text().splitlines()]


def test_both_ways_train_the_same_network(config: FinetuneConfig, tmp_path: Path) -> None:
    # Without dropout no random number is drawn differently; what is left is rounding.
    config = replace(config, dropout=0.0, augment="none")
    cached, streamed = (
        finetune(config),
        finetune(replace(config, cache_budget=0, output=tmp_path / "streamed")),
    )
    for left, right in zip(epochs(cached), epochs(streamed), strict=True):
        assert left["train_loss"] == pytest.approx(right["train_loss"], rel=1e-3)
        assert left["val_loss"] == pytest.approx(right["val_loss"], rel=1e-3)


def test_a_later_run_uses_the_cache_and_gives_the_same_weights(
    config: FinetuneConfig, tmp_path: Path
) -> None:
    first, second = Notes(), Notes()
    once = finetune(config, first)
    again = finetune(replace(config, output=tmp_path / "again"), second)
    assert (first.prepared_in_all, second.prepared_in_all) == (1, 0)
    assert any("cached by an earlier run" in text for text in second.notes)
    assert sha256_file(once.weights) == sha256_file(again.weights)
    metrics = [json.loads(run.metrics.read_text()) for run in (once, again)]
    assert [one["frozen_blocks"]["cache"] for one in metrics] == ["filled", "reused"]
    assert metrics[0]["val"] == metrics[1]["val"]


@pytest.mark.parametrize(
    "change", ["seed", "augment", "views", "size", "unfreeze", "image", "weights"]
)
def test_what_was_made_from_something_else_is_not_used(
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
    watched = Notes()
    finetune(other, watched)
    assert watched.prepared_in_all == 1


def test_a_damaged_cache_is_made_anew(config: FinetuneConfig, tmp_path: Path) -> None:
    once = finetune(config)
    for file in (tmp_path / "cache/activations").rglob("train-0.bin"):
        file.write_bytes(file.read_bytes()[:-1])
    watched = Notes()
    again = finetune(replace(config, output=tmp_path / "again"), watched)
    assert watched.prepared_in_all == 1
    assert sha256_file(once.weights) == sha256_file(again.weights)


def test_a_budget_that_is_too_small_streams_and_says_so(
    config: FinetuneConfig, tmp_path: Path
) -> None:
    watched = Notes()
    run = finetune(replace(config, cache_budget=10_000), watched)
    assert any("view" in text and "need" in text and "--cache-budget" in text for text in watched.notes)
    assert not list((tmp_path / "cache").glob("activations/*"))
    assert json.loads(run.metrics.read_text())["frozen_blocks"]["cache"] == "none"


def test_fewer_views_are_taken_where_fewer_fit(config: FinetuneConfig, tmp_path: Path) -> None:
    row = (
        96 + 1024
    ) * 4  # what crosses the cut of the last two blocks at 32 pixels, and the head's features
    watched = Notes()
    finetune(
        replace(config, views=None, unfreeze="2", cache_budget=row * (18 * 2 + 6) + 100), watched
    )
    metas = [
        json.loads(meta.read_text()) for meta in (tmp_path / "cache/activations").rglob("meta.json")
    ]
    assert [meta["train"][0]["shape"][:2] for meta in metas] == [[2, 18], [2, 18]]
    assert any("holds 2 of 3 views" in text for text in watched.notes)


def test_nothing_frozen_streams_and_says_so(config: FinetuneConfig) -> None:
    watched = Notes()
    run = finetune(replace(config, epochs=0, unfreeze="all", batch_norm="train"), watched)
    assert any("Phase 2 has no frozen blocks" in text for text in watched.notes)
    assert len(epochs(run)) == 3
    assert watched.prepared_in_all == 0


def test_a_runtime_that_refuses_a_later_piece_gives_way_to_pytorch(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = []

    def picky(name: str, piece: Any, example: Any, computing: Any) -> FeatureExtractor:
        if example[0].shape[1] != 3:
            refused.append(name)
            raise ExportError("an operator that is not known")
        return make_extractor(name, piece, example, computing)

    monkeypatch.setattr("edgetl.train.engine.phase_builder.make_extractor", picky)
    assert len(epochs(finetune(config))) == 5
    assert refused


def test_a_cache_that_cannot_be_written_is_kept_in_memory(
    config: FinetuneConfig, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file where the folder would be")
    run = finetune(config)
    assert len(epochs(run)) == 5
    assert json.loads(run.metrics.read_text())["frozen_blocks"]["cache"] == "filled"


def test_the_cached_run_s_weights_are_the_whole_network_s(config: FinetuneConfig) -> None:
    run = finetune(config)
    metrics = json.loads(run.metrics.read_text())
    model = load_run_model(run)
    best = max((record for record in epochs(run)), key=lambda record: record["val_accuracy"])
    assert metrics["val"]["accuracy"] == best["val_accuracy"]
    assert all(parameter.dtype == torch.float32 for parameter in model.model.parameters())


LABELS = torch.tensor([0] * 12 + [1] * 3 + [2])


def test_an_epoch_holds_every_image_once_in_a_new_order() -> None:
    order = EpochSampler(LABELS, "shuffled", 4, seed=3)
    once, again, other = order.sample_batches(1), order.sample_batches(1), order.sample_batches(2)
    assert once == again != other
    assert sorted(position for batch in once for position in batch) == list(range(16))
    assert len(once) == order.steps_per_epoch
    assert EpochSampler(LABELS, "shuffled", 4, seed=4).sample_batches(1) != once


def test_balanced_sampling_shows_every_class_equally_often() -> None:
    order = EpochSampler(LABELS, "balanced", 4, seed=3)
    for epoch in (1, 2):
        drawn = [position for batch in order.sample_batches(epoch) for position in batch]
        assert len(drawn) == 16
        counts = torch.bincount(LABELS[drawn], minlength=3)
        assert counts.max() - counts.min() <= 2
        assert {position for position in drawn if LABELS[position] == 1} == {12, 13, 14}
