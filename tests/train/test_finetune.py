from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgetl.core.artifacts.run import EpochRecord
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import ConfigError, DataError, RunError, WeightsError
from edgetl.core.files import sha256_file, write_json
from edgetl.core.paths import RunDirectory
from edgetl.core.progress import StepProgress, TrainingProgress
from edgetl.core.typed_json import to_json
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import preprocess
from edgetl.report.plots.contact_sheet import Mistake
from edgetl.train.common.precision import ComputeConfig
from edgetl.train.finetune import finetune
from edgetl.train.output_directory import OutputDirectory, choose_output_directory
from tests.helpers.runs import write_run
from tests.helpers.trained_runs import load_model, read_entries

MakeImages = Callable[..., Path]
MODEL = "mobilenet_v3_small"
METRICS_KEYS = {
    "schema",
    "model",
    "classes",
    "train",
    "val",
    "seconds",
    "parameters",
    "device",
    "processes",
    "precision",
    "weights",
    "best_epoch",
    "ended",
    "frozen_blocks",
    "steps",
    "batch",
    "final",
    "peak_memory_bytes",
    "peak_gpu_memory_bytes",
}
HISTORY_KEYS = {
    "phase",
    "epoch",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "lr",
    "seconds",
    "images_per_second",
    "elapsed",
}


@pytest.fixture
def config(make_images: MakeImages, random_weights: Path, tmp_path: Path) -> FinetuneConfig:
    return FinetuneConfig(
        data=make_images("data", ["blue", "green", "red"], count=10),
        output=tmp_path / "run",
        model=MODEL,
        weights=str(random_weights),
        image_size=32,
        epochs=2,
        finetune_epochs=1,
        lr=1e-3,
        finetune_lr=1e-4,
        batch_norm="eval",
        schedule="constant",
        warmup=0.0,
        batch_size=8,
        precision="fp32",
    )


class RecordingProgress(TrainingProgress):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.steps: list[StepProgress] = []
        self.epochs: list[tuple[EpochRecord, bool]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def on_step_end(self, step: StepProgress) -> None:
        self.steps.append(step)

    def on_epoch_end(self, record: EpochRecord, best: bool) -> None:
        self.epochs.append((record, best))


def metrics_of(run: RunDirectory) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(run.metrics.read_text())
    return content


def history_of(run: RunDirectory) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.history.read_text().splitlines()]


def path_in(run: RunDirectory, path: Path) -> str:
    return path.relative_to(json.loads(run.config.read_text())["config"]["data"]).as_posix()


def test_run_is_complete_and_metrics_are_reproducible(config: FinetuneConfig) -> None:
    progress = RecordingProgress()
    run = finetune(replace(config, epochs=4, finetune_epochs=2), progress)
    metrics, history = metrics_of(run), history_of(run)
    assert metrics.keys() == METRICS_KEYS
    assert [line["phase"] for line in history] == [1, 1, 1, 1, 2, 2]
    assert [line["epoch"] for line in history] == [1, 2, 3, 4, 5, 6]
    assert [line["lr"] for line in history] == [1e-3] * 4 + [1e-4] * 2
    assert history[0].keys() == HISTORY_KEYS
    assert [to_json(record) for record, _ in progress.epochs] == history
    elapsed = [line["elapsed"] for line in history]
    assert sorted(elapsed) == elapsed
    assert sum(line["seconds"] for line in history) < elapsed[-1] < metrics["seconds"]["total"]
    assert metrics["peak_memory_bytes"] > 2**27
    assert metrics["peak_gpu_memory_bytes"] is None
    with run.predictions.open(newline="") as stream:
        predictions = list(csv.DictReader(stream))
    assert sum(row["label"] == row["predicted"] for row in predictions) / len(
        predictions
    ) == pytest.approx(metrics["val"]["accuracy"])
    assert [row["path"] for row in predictions] == [
        path_in(run, row.path) for row in read_entries(run) if row.split == "val"
    ]
    assert all(
        (row["probability"] == row["label_probability"]) == (row["label"] == row["predicted"])
        and 1 / 3 < float(row["probability"]) <= 1
        and 0 <= float(row["label_probability"]) <= float(row["probability"])
        for row in predictions
    )
    assert progress.steps[-1].images == progress.steps[-1].images_total == 24
    assert metrics["val"]["accuracy"] == max(line["val_accuracy"] for line in history)
    assert metrics["best_epoch"] == [record.epoch for record, best in progress.epochs if best][-1]
    low, high = metrics["val"]["accuracy_ci95"]
    assert low <= metrics["val"]["accuracy"] <= high
    assert metrics["val"]["per_class"].keys() == {"blue", "green", "red"}
    assert metrics["weights"] == {
        "source": config.weights,
        "sha256": sha256_file(Path(config.weights)),
    }
    assert 0 < metrics["parameters"]["trainable"] < metrics["parameters"]["total"]
    assert (metrics["train"]["images"], metrics["val"]["images"]) == (24, 6)
    assert (
        metrics["seconds"]["total"] >= metrics["seconds"]["phase1"] + metrics["seconds"]["phase2"]
    )

    # The same accuracy from the model as loaded by export and bench, image by image.
    model = load_model(run)
    assert model.labels == metrics["classes"] == ["blue", "green", "red"]
    assert model.run_id == sha256_file(run.weights)[:12]
    for part in ("train", "val"):
        rows = [row for row in read_entries(run) if row.split == part]
        pixels = [
            torch.from_numpy(preprocess(load_image(row.path), model.preprocessing)) for row in rows
        ]
        with torch.inference_mode():
            predictions = [model.labels[int(model.model(tensor).argmax())] for tensor in pixels]
        assert (
            sum(label == row.label for label, row in zip(predictions, rows, strict=True))
            / len(rows)
            == metrics[part]["accuracy"]
        )


@pytest.mark.usefixtures("plots")
def test_config_json_has_the_resolved_configuration(config: FinetuneConfig) -> None:
    run = finetune(replace(config, epochs=1, finetune_epochs=0))
    content = json.loads(run.config.read_text())
    assert content["config"]["unfreeze"] == "3"
    assert content["config"]["image_size"] == 32
    assert content["config"]["precision"] == "fp32"
    assert Path(content["config"]["data"]).is_absolute()
    assert content["versions"].keys() >= {
        "edgetl",
        "torch",
        "torchvision",
        "albumentations",
        "python",
    }
    assert content["data"]["counts"]["val"] == {"blue": 2, "green": 2, "red": 2}
    assert len(content["data"]["fingerprint"]) == 64
    assert content["weights"]["sha256"] == sha256_file(Path(config.weights))
    with run.split.open(newline="") as stream:
        assert {row["path"].split("/")[0] for row in csv.DictReader(stream)} == {
            "blue",
            "green",
            "red",
        }
    assert not run.rejected_files.exists()
    for name in ("curves", "confusion_matrix", "mistakes"):
        with Image.open(run.plots / f"{name}.png") as image:
            assert min(image.size) > 300
    assert not list(run.path.rglob(".*")), "temporary files must be removed"


@pytest.mark.usefixtures("plots")
def test_mistakes_are_drawn_with_their_evidence(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistakes: list[Mistake] = []
    monkeypatch.setattr(
        "edgetl.train.plots.save_mistakes_sheet", lambda _, worst, *__: mistakes.extend(worst)
    )
    progress = RecordingProgress()
    run = finetune(replace(config, epochs=1, finetune_epochs=0, lr=1e-9), progress)
    wrong = round((1 - metrics_of(run)["val"]["accuracy"]) * 6)
    assert len(mistakes) == wrong > 0
    assert progress.warnings == []
    for mistake in mistakes:
        assert mistake.explanation is not None
        assert not np.array_equal(mistake.explanation, mistake.image)


def test_training_accuracy_exceeds_80_percent(
    make_images: MakeImages, config: FinetuneConfig
) -> None:
    data = make_images("more", ["blue", "green", "red"], count=20, seed=4)
    run = finetune(replace(config, data=data, epochs=10, lr=1e-2, unfreeze="head", augment="none"))
    assert metrics_of(run)["train"]["accuracy"] > 0.8


def test_weights_do_not_depend_on_workers(config: FinetuneConfig, tmp_path: Path) -> None:
    first = finetune(config)
    with_workers = finetune(replace(config, output=tmp_path / "again", workers=2))
    other_seed = finetune(replace(config, output=tmp_path / "other", seed=1))
    assert (
        sha256_file(first.weights)
        == sha256_file(with_workers.weights)
        != sha256_file(other_seed.weights)
    )


def test_phase_2_starts_from_best_epoch_of_phase_1(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Epoch 2 of 4 is made the best one; a second phase with no learning rate shows its start.
    monkeypatch.setattr(
        "edgetl.core.artifacts.run.EpochRecord.is_better_than",
        lambda record, best: record.epoch <= 2,
    )
    run = finetune(replace(config, epochs=4, finetune_epochs=1, finetune_lr=1e-12))
    losses = [line["val_loss"] for line in history_of(run)]
    assert losses[4] == pytest.approx(losses[1], rel=1e-4)
    assert losses[4] != pytest.approx(losses[3], rel=1e-3)
    assert metrics_of(run)["val"]["loss"] == pytest.approx(losses[1], rel=1e-4)
    assert metrics_of(run)["best_epoch"] == 2


@pytest.mark.usefixtures("plots")
def test_run_without_validation_has_no_val_metrics(config: FinetuneConfig) -> None:
    progress = RecordingProgress()
    run = finetune(replace(config, val_split=0), progress)
    metrics = metrics_of(run)
    assert metrics["val"] is None
    assert metrics["best_epoch"] == 3
    assert metrics["train"]["images"] == 30
    assert all(line["val_loss"] is None for line in history_of(run))
    assert any("nothing is known about accuracy" in text for text in progress.warnings)
    assert (run.plots / "mistakes.png").is_file()


def test_weights_none_trains_all_layers_in_one_phase(config: FinetuneConfig) -> None:
    progress = RecordingProgress()
    run = finetune(replace(config, weights="none"), progress)
    metrics = metrics_of(run)
    assert [(line["phase"], line["lr"]) for line in history_of(run)] == [(1, 1e-3)] * 3
    assert metrics["parameters"]["trainable"] == metrics["parameters"]["total"]
    assert metrics["weights"] == {"source": "none", "sha256": None}
    assert json.loads(run.config.read_text())["config"]["unfreeze"] == "all"
    assert any("nothing is pretrained" in text for text in progress.notes)
    statistics = load_model(run).model.get_submodule("features.0.1").running_mean
    assert float(statistics.abs().sum()) > 0  # type: ignore[operator,union-attr]
    with pytest.raises(ConfigError, match="batch_size must be >= 2"):
        finetune(replace(config, weights="none", batch_size=1, output=run.path.parent / "other"))


@pytest.mark.parametrize(("count", "batch_size"), [(1, 32), (3, 32), (3, 4), (5, 7), (2, 1)])
def test_any_number_of_images_and_batch_size_trains(
    make_images: MakeImages, config: FinetuneConfig, tmp_path: Path, count: int, batch_size: int
) -> None:
    data = make_images("few", ["a", "b", "c"], count=count)
    run = finetune(replace(config, data=data, batch_size=batch_size, val_split=0, epochs=1))
    assert metrics_of(run)["train"]["images"] == 3 * count


def test_one_image_per_class_trains(make_images: MakeImages, config: FinetuneConfig) -> None:
    data = make_images("tiny", [f"class {index}" for index in range(10)], count=1, size=96)
    run = finetune(
        replace(config, data=data, image_size=96, epochs=1, finetune_epochs=0, val_split=0)
    )
    assert metrics_of(run)["best_epoch"] == 1
    assert load_model(run).preprocessing.crop == 96


def test_bfloat16_trains(config: FinetuneConfig) -> None:
    run = finetune(replace(config, precision="bf16", epochs=1, finetune_epochs=1))
    assert metrics_of(run)["precision"] == "bf16"
    assert all(parameter.dtype == torch.float32 for parameter in load_model(run).model.parameters())


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_float16_trains_with_scaled_gradients(
    config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: float
) -> None:
    # Like a GPU without bfloat16; a CPU emulates float16.
    compute_config = ComputeConfig(torch.device("cpu"), "fp16")
    monkeypatch.setattr(
        "edgetl.train.setup.choose_compute_config", lambda device, precision: compute_config
    )
    config = replace(config, epochs=3, finetune_epochs=1, clip_gradient=clip)
    run = finetune(config)
    assert metrics_of(run)["precision"] == "fp16"
    monkeypatch.undo()
    exact = finetune(replace(config, output=tmp_path / "exact"))
    first, second = (
        json.loads(history.read_text().splitlines()[0]) for history in (run.history, exact.history)
    )
    assert first["train_loss"] == pytest.approx(second["train_loss"], rel=0.05)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"ema": 0.9}, marks=pytest.mark.slow),
        {"mixup": 0.2, "cutmix": 1.0},
        {"class_weights": "balanced", "label_smoothing": 0.1},
        {"sampling": "balanced"},
        pytest.param(
            {"clip_gradient": 0.1, "weight_decay": 0.05, "lr_decay": 0.7}, marks=pytest.mark.slow
        ),
        {"batch_norm": "train", "schedule": "cosine", "warmup": 0.3},
        pytest.param({"head_width": 16, "dropout": 0.0}, marks=pytest.mark.slow),
        {"unfreeze": "all"},
        pytest.param({"views": 2}, marks=pytest.mark.slow),
        pytest.param({"augment": "none"}, marks=pytest.mark.slow),
        {"workers": 2, "cache_budget": 0, "ema": 0.9},
    ],
)
def test_metrics_match_the_saved_model_for_every_option(
    config: FinetuneConfig, change: dict[str, Any]
) -> None:
    run = finetune(replace(config, test_split=0.3, **change))
    metrics, model = metrics_of(run), load_model(run)
    for split, images in (("val", 6), ("test", 9)):
        rows = [row for row in read_entries(run) if row.split == split]
        assert len(rows) == metrics[split]["images"] == images
        with torch.inference_mode():
            logits = [
                model.model(torch.from_numpy(preprocess(load_image(row.path), model.preprocessing)))
                for row in rows
            ]
        correct = [
            model.labels[int(output.argmax())] == row.label
            for output, row in zip(logits, rows, strict=True)
        ]
        assert sum(correct) / len(correct) == metrics[split]["accuracy"]
        targets = torch.tensor([model.labels.index(row.label) for row in rows])
        loss = float(torch.nn.functional.cross_entropy(torch.cat(logits), targets))
        assert loss == pytest.approx(metrics[split]["loss"], rel=1e-3)


def test_test_images_have_figures_and_predictions(config: FinetuneConfig) -> None:
    progress = RecordingProgress()
    run = finetune(replace(config, test_split=0.2, epochs=1, finetune_epochs=0), progress)
    assert "3 classes, 18 training, 6 validation and 6 test images." in progress.notes
    metrics, entries = metrics_of(run), read_entries(run)
    assert metrics["test"].keys() == metrics["val"].keys()
    counts = json.loads(run.config.read_text())["data"]["counts"]
    assert counts["test"] == {"blue": 2, "green": 2, "red": 2}
    with run.test_predictions.open(newline="") as stream:
        predictions = list(csv.DictReader(stream))
    assert [row["path"] for row in predictions] == [
        path_in(run, entry.path) for entry in entries if entry.split == "test"
    ]
    correct = [row["label"] == row["predicted"] for row in predictions]
    assert sum(correct) / len(correct) == metrics["test"]["accuracy"]
    low, high = metrics["test"]["accuracy_ci95"]
    assert low <= metrics["test"]["accuracy"] <= high


def test_run_without_test_images_has_no_test_figures(config: FinetuneConfig) -> None:
    run = finetune(replace(config, epochs=1, finetune_epochs=0))
    assert metrics_of(run).keys() == METRICS_KEYS
    assert json.loads(run.config.read_text())["data"]["counts"].keys() == {"train", "val"}
    assert not run.test_predictions.exists()


def test_test_images_without_validation_images_are_evaluated(config: FinetuneConfig) -> None:
    run = finetune(replace(config, val_split=0, test_split=0.2, epochs=1, finetune_epochs=0))
    assert metrics_of(run)["val"] is None
    assert metrics_of(run)["test"]["images"] == 6


def test_val_and_test_split_leave_training_images() -> None:
    with pytest.raises(ConfigError, match=r"must leave images to train on, got 0\.5 and 0\.5"):
        FinetuneConfig("data", val_split=0.5, test_split=0.5)


def test_target_accuracy_ends_training(config: FinetuneConfig) -> None:
    progress = RecordingProgress()
    run = finetune(replace(config, epochs=6, lr=1e-2, target_accuracy=0.01), progress)
    assert len(history_of(run)) == 1
    assert metrics_of(run)["ended"] == "--target-accuracy"
    assert any("--target-accuracy" in text for text in progress.notes)


def test_patience_ends_the_phase_only(config: FinetuneConfig) -> None:
    progress = RecordingProgress()
    frozen_config = replace(config, lr=1e-30, finetune_lr=1e-30, batch_norm="eval")
    run = finetune(replace(frozen_config, epochs=20, finetune_epochs=20, patience=2), progress)
    phases = [line["phase"] for line in history_of(run)]
    assert phases.count(1) < 20
    assert phases.count(2) < 20
    assert len([text for text in progress.notes if "--patience" in text]) == 2


@pytest.mark.usefixtures("plots")
def test_budget_limits_the_duration(config: FinetuneConfig) -> None:
    progress = RecordingProgress()
    start_time = time.monotonic()
    run = finetune(replace(config, epochs=10, finetune_epochs=3000, budget_s=10.0), progress)
    assert time.monotonic() - start_time < 10
    history = history_of(run)
    assert [line["phase"] for line in history].count(2) < 3000
    assert {line["phase"] for line in history} == {1, 2}, "both phases finish"
    assert any(text.startswith("--budget: ") for text in progress.notes)


@pytest.mark.slow
@pytest.mark.usefixtures("plots")
@pytest.mark.parametrize(
    "change", [{"unfreeze": "all"}, {"cache_budget": 0}, {"weights": "none", "epochs": 0}]
)
def test_budget_limits_the_duration_for_any_option(
    config: FinetuneConfig, change: dict[str, Any]
) -> None:
    progress = RecordingProgress()
    start_time = time.monotonic()
    run = finetune(
        replace(config, finetune_epochs=2000, budget_s=8.0, **({"epochs": 5} | change)), progress
    )
    assert time.monotonic() - start_time < 8
    assert 1 <= len(history_of(run)) < 2000
    assert any(text.startswith("--budget: ") for text in progress.notes)


def test_budget_too_short_warns(config: FinetuneConfig) -> None:
    progress = RecordingProgress()
    run = finetune(replace(config, budget_s=0.001), progress)
    assert any("too short even for one epoch" in text for text in progress.warnings)
    assert len(history_of(run)) >= 1


def test_options_without_effect_warn(config: FinetuneConfig) -> None:
    progress = RecordingProgress()
    finetune(replace(config, val_split=0, patience=1), progress)
    assert any("no effect without validation" in text for text in progress.warnings)


def test_top5_accuracy_is_reported_above_five_classes(
    make_images: MakeImages, config: FinetuneConfig
) -> None:
    data = make_images("many", [f"class {index}" for index in range(7)], count=4, size=40)
    val = metrics_of(finetune(replace(config, data=data, epochs=1, finetune_epochs=0)))["val"]
    assert val["accuracy"] <= val["top5_accuracy"] <= 1
    assert 0 <= val["calibration_error"] <= 1
    assert (
        metrics_of(finetune(replace(config, epochs=1, finetune_epochs=0, force=True)))["val"][
            "top5_accuracy"
        ]
        is None
    )


def test_broken_files_are_listed_and_skipped(config: FinetuneConfig) -> None:
    (config.data / "red/broken.jpg").write_bytes(b"")
    progress = RecordingProgress()
    run = finetune(replace(config, epochs=1, finetune_epochs=0), progress)
    assert run.rejected_files.read_text().splitlines()[1].startswith("red/broken.jpg,")
    assert json.loads(run.config.read_text())["data"]["rejected"] == 1
    assert any("1 file was skipped" in text for text in progress.warnings)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"data": Path("nowhere")}, DataError, "Data folder not found"),
        ({"weights": "nowhere.pth"}, WeightsError, "No weights at"),
        ({"unfreeze": "99"}, ConfigError, "unfreeze 99"),
        ({"model": "resnet18"}, WeightsError, "does not fit resnet18"),
    ],
)
def test_invalid_input_creates_no_files(
    config: FinetuneConfig, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        finetune(replace(config, **change))
    assert config.output is not None
    assert not config.output.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_missing_cuda_is_an_error(config: FinetuneConfig) -> None:
    with pytest.raises(ConfigError, match=r"sees no CUDA device.*doctor"):
        finetune(replace(config, device="cuda"))


def test_force_keeps_the_old_run_on_invalid_input(config: FinetuneConfig) -> None:
    run = finetune(replace(config, epochs=1, finetune_epochs=0))
    before = sha256_file(run.metrics)
    with pytest.raises(DataError):
        finetune(replace(config, data=Path("nowhere"), force=True))
    assert sha256_file(run.metrics) == before
    with pytest.raises(RunError, match="already exists"):
        finetune(config)
    finetune(replace(config, epochs=2, finetune_epochs=0, force=True))
    assert metrics_of(run)["best_epoch"] in (1, 2)
    assert len(history_of(run)) == 2, "the old history must be replaced"


def test_infinite_loss_fails_and_keeps_the_best_weights(config: FinetuneConfig) -> None:
    with pytest.raises(RunError, match="not finite in epoch 1"):
        finetune(replace(config, lr=1e30, head_width=16))
    assert config.output is not None
    assert not config.output.exists()
    with pytest.raises(RunError, match="not finite in epoch 2"):
        finetune(replace(config, epochs=1, finetune_epochs=3, finetune_lr=1e30, head_width=16))
    assert load_model(config.output).labels == ["blue", "green", "red"]


def test_choose_output_directory_finds_a_free_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "my photos"
    data.mkdir()
    assert (
        choose_output_directory(None, data, MODEL, force=False).path
        == tmp_path / f"runs/my-photos-{MODEL}"
    )
    (tmp_path / f"runs/my-photos-{MODEL}").mkdir(parents=True)
    assert (
        choose_output_directory(None, data, MODEL, force=False).path
        == tmp_path / f"runs/my-photos-{MODEL}-2"
    )


def test_choose_output_directory_rejects_overlap_with_data(tmp_path: Path) -> None:
    data = tmp_path / "my photos"
    data.mkdir()
    for output in (data, data / "run"):
        with pytest.raises(RunError, match="inside the data folder"):
            choose_output_directory(output, data, MODEL, force=True)
    with pytest.raises(RunError, match="must not be inside the run directory"):
        choose_output_directory(tmp_path, data, MODEL, force=True)


def test_force_replaces_a_run_with_a_report(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    run.report.write_text("<p>the page", encoding="utf-8")
    assert choose_output_directory(run.path, tmp_path / "photos", MODEL, force=True) == run


@pytest.mark.parametrize("versions", [None, 3, ["edgetl"], {"torch": "2"}])
def test_force_never_removes_folder_with_foreign_config(tmp_path: Path, versions: object) -> None:
    write_json(tmp_path / "run/config.json", {"versions": versions})
    with pytest.raises(RunError, match="is not a run directory"):
        choose_output_directory(tmp_path / "run", tmp_path / "photos", MODEL, force=True)
    assert (tmp_path / "run/config.json").is_file()


@pytest.mark.parametrize(
    "kind", ["file", "other folder", "other folder with a config", "run with other files", "link"]
)
def test_force_never_removes_other_files(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "output"
    precious = path / "precious.txt"
    if kind == "file":
        path.write_text("precious")
        precious = path
    else:
        path.mkdir()
        precious.write_text("precious")
        if kind != "other folder":
            write_json(
                path / "config.json",
                {} if kind == "other folder with a config" else {"versions": {"edgetl": "0.1.0"}},
            )
        if kind == "link":
            precious.unlink()
            path.rename(tmp_path / "target")
            path.symlink_to(tmp_path / "target")
            precious = path / "config.json"
    for force in (False, True):
        with pytest.raises(RunError):
            choose_output_directory(path, tmp_path / "data", MODEL, force)
    assert precious.exists()


@pytest.mark.parametrize(
    "name",
    [
        ".git/HEAD",
        ".env",
        "plots/mine.txt",
        "plots/deep/curves.png",
        "bench/pi.json",
        "checkpoint/notes.md",
        "bundle/notes.txt",
        "tensorboard/notes.txt",
    ],
)
def test_force_names_hidden_and_nested_user_files(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "run")
    file = run.path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("precious")
    with pytest.raises(RunError, match="did not write") as error:
        choose_output_directory(run.path, tmp_path / "photos", MODEL, force=True)
    assert name in str(error.value)
    assert file.read_text() == "precious"


def test_force_replaces_all_files_written_by_edgetl(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    files = {
        "bench/20261124T200426Z-pi.json": "{}",
        "bench/20261124T200426Z-pi/performance/mlperf_log_summary.txt": "",
        "plots/flips_int8-weights.png": "",
        "tensorboard/events.out.tfevents.1732478000.host.17.0": "",
        "checkpoint/state.safetensors": "",
        ".metrics.json.a1b2c3d4.json": "",
        "checkpoint/.state.safetensors.a1b2c3d4.safetensors": "",
        "bundle/bundle.json": json.dumps(
            {"schema": 1, "kind": "bundle", "golden": {"images": [{"file": "golden/0_a.jpg"}]}}
        ),
        "bundle/golden/0_a.jpg": "",
        "bundle/README.md": "",
    }
    for name, content in files.items():
        file = run.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    assert choose_output_directory(run.path, tmp_path / "photos", MODEL, force=True) == run


@pytest.mark.parametrize("failing", ["rename", "mkdtemp"])
def test_run_that_cannot_be_moved_keeps_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    run = write_run(tmp_path / "run")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}

    def refuse(*_: object, **__: object) -> None:
        # The error of rename(2) for a mount point and of mkdir(2) in a read-only file system.
        raise OSError(errno.EBUSY, "Device or resource busy")

    target = "pathlib.Path.rename" if failing == "rename" else "edgetl.core.files.tempfile.mkdtemp"
    with monkeypatch.context() as patch:
        patch.setattr(target, refuse)
        with pytest.raises(RunError, match=r"cannot be replaced \(Device or resource busy\)"):
            OutputDirectory(run)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_empty_directory_is_used_without_force(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert (
        choose_output_directory(tmp_path / "run", tmp_path / "data", MODEL, force=False).path
        == tmp_path / "run"
    )


def test_load_run_model_rejects_changed_files(config: FinetuneConfig) -> None:
    run = finetune(replace(config, epochs=1, finetune_epochs=0))
    content = json.loads(run.config.read_text())
    write_json(run.config, {**content, "classes": ["a", "b"]})
    with pytest.raises(RunError, match="was changed after the training"):
        load_model(run)
    run.metrics.unlink()
    with pytest.raises(RunError, match=r"do not match config\.json"):
        load_model(run)
    write_json(run.config, {"classes": ["a", "b"]})
    with pytest.raises(RunError, match="is broken"):
        load_model(run)


def start(config: FinetuneConfig, epochs: int) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "edgetl",
        "finetune",
        str(config.data),
        "-o",
        str(config.output),
        "--model",
        MODEL,
        "--batch-size",
        "8",
    ]
    command += [
        "--weights",
        config.weights,
        "--image-size",
        "32",
        "--epochs",
        str(epochs),
        "--workers",
        "2",
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_and_sighup_keep_the_best_epoch(
    config: FinetuneConfig, number: signal.Signals
) -> None:
    assert config.output is not None
    run = RunDirectory(config.output)
    with start(config, epochs=100_000) as process:
        _wait(
            process, lambda: run.history.exists() and len(run.history.read_text().splitlines()) >= 2
        )
        os.killpg(process.pid, number)  # like a batch system, to the workers too
        out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert out == ""
    assert "Traceback" not in err
    for part in ("Interrupted after", str(run.path), "edgetl export", "--resume"):
        assert part in err
    assert run.checkpoint.exists()
    assert load_model(run.path).labels == ["blue", "green", "red"]


@pytest.mark.slow
def test_ctrl_c_keeps_the_best_epoch(config: FinetuneConfig) -> None:
    assert config.output is not None
    run = RunDirectory(config.output)
    with start(config, epochs=100_000) as process:
        _wait(
            process, lambda: run.history.exists() and len(run.history.read_text().splitlines()) >= 2
        )
        os.killpg(process.pid, signal.SIGINT)  # like a terminal, to the workers too
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    for part in ("Interrupted after", str(run.path), "edgetl export", "--resume"):
        assert part in err
    assert not run.metrics.exists(), "metrics.json marks a finished run"
    assert load_model(run.path).labels == ["blue", "green", "red"]
    assert len(read_entries(run)) == 30


def _wait(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_ctrl_c_before_the_first_epoch_leaves_no_files(config: FinetuneConfig) -> None:
    class InterruptingProgress(TrainingProgress):
        def on_step_end(self, step: StepProgress) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="nothing was kept"):
        finetune(config, InterruptingProgress())
    assert config.output is not None
    assert not config.output.exists()


def test_force_restores_the_old_run_when_the_new_one_fails(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finetune(config)
    before = {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}

    def explode(*_: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("edgetl.train.engine.trainer.Trainer.train_phase", explode)
        with pytest.raises(RuntimeError, match="out of memory"):
            finetune(replace(config, force=True))
    assert {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()} == before
    assert not list(run.path.parent.glob(".*replaced*"))
    finetune(replace(config, force=True, seed=config.seed + 1))
    assert (run.path / "config.json").read_bytes() != before["config.json"]
    assert not list(run.path.parent.glob(".*replaced*"))


def test_val_split_0_ignores_validation_folder(parts: Path, config: FinetuneConfig) -> None:
    run = finetune(replace(config, data=parts, val_split=0.0))
    metrics = json.loads(run.metrics.read_text())
    assert metrics["val"] is None
    assert metrics["train"]["images"] == 40


def test_split_seed_shares_a_split_between_seeds(
    make_images: Callable[..., Path], config: FinetuneConfig, tmp_path: Path
) -> None:
    data = make_images("flat", ["blue", "green", "red"], count=10, seed=5)
    short = replace(config, data=data, epochs=1, finetune_epochs=0, split_seed=7)
    runs = [finetune(replace(short, seed=seed, output=tmp_path / f"seed{seed}")) for seed in (1, 2)]
    assert runs[0].split.read_text() == runs[1].split.read_text()
    assert sha256_file(runs[0].weights) != sha256_file(runs[1].weights)
    default_split = finetune(replace(short, split_seed=None, seed=7, output=tmp_path / "default"))
    assert default_split.split.read_text() == runs[0].split.read_text()
