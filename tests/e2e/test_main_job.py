"""Main workflow on real photos with real weights: fine-tune, export, predict with the client."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgetl.device.predict import predict
from edgetl.device.runtime.classifier import open_classifier
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import preprocess, resize_and_crop
from edgetl.device.verify import verify
from tests.device.runtime.test_images import UNREADABLE
from tests.helpers.clients import read_closest_labels
from tests.helpers.trained_runs import load_model, read_entries

Run = Callable[..., subprocess.CompletedProcess[str]]


def finetune(
    edgetl: Run, data: Path, weights: Path, run: Path, *options: object
) -> dict[str, object]:
    process = edgetl("finetune", data, "--weights", weights, "-o", run, *options)
    assert process.returncode == 0, process.stderr
    metrics: dict[str, object] = json.loads((run / "metrics.json").read_text())
    return metrics


def check_export(edgetl: Run, run: Path) -> None:
    """Check the parity tolerances, and the client's labels on every validation image."""
    process = edgetl("export", run, "--explain")
    assert process.returncode == 0, process.stderr
    (variant,) = json.loads((run / "bundle/bundle.json").read_text())["variants"]
    assert variant["parity"]["network"]["max_abs_diff"] <= 1e-3
    assert variant["parity"]["path"]["max_abs_diff"] <= 0.05
    assert variant["parity"]["path"]["max_grey_levels"] <= 1
    assert variant["parity"]["activation_maps"]["max_abs_diff"] <= 1e-3
    assert variant["accuracy"]["flips"] == 0
    model = load_model(run)
    images = [row.path for row in read_entries(run) if row.split == "val"]
    with torch.inference_mode():
        tensors = (
            torch.from_numpy(preprocess(load_image(path), model.preprocessing)) for path in images
        )
        expected = {
            str(path): model.labels[int(model.model(tensor).argmax())]
            for path, tensor in zip(images, tensors, strict=True)
        }
    client = [sys.executable, "-I", str(run / "bundle/predict.py"), *expected]
    output = subprocess.run(client, capture_output=True, text=True, check=True).stdout
    labels = {path: label for path, (label, _) in read_closest_labels(output).items()}
    assert labels == expected


def check_activation_maps(run: Path) -> None:
    """Check on pairs of photos side by side that the evidence for a class lies in its photo."""
    classifier = open_classifier(run / "bundle", explain=True)
    photos: dict[str, list[NDArray[np.uint8]]] = {label: [] for label in classifier.labels}
    for row in read_entries(run):
        photo = resize_and_crop(load_image(row.path), classifier.preprocessing)
        if row.split == "val" and classifier.classify(photo).max() > 0.9:
            photos[row.label].append(photo)
    correct = []
    for cat, dog in list(zip(*photos.values(), strict=False))[:10]:
        # Two squares of the same content as the crops, half as large.
        pair = np.concatenate([cat[::2, ::2], dog[::2, ::2]], axis=1)
        margin = len(pair) // 2
        image = np.pad(pair, ((margin, margin), (0, 0), (0, 0)), mode="edge")
        maps = classifier.run(classifier.prepare_input(image)).activation_maps
        assert maps is not None
        evidence = np.maximum(maps[0] - maps[0].mean(axis=0), 0)
        columns = np.arange(evidence.shape[2]) - (evidence.shape[2] - 1) / 2
        sides = (evidence.sum(axis=1) * columns).sum(axis=1)
        correct += [sides[0] < 0, sides[1] > 0]
    assert len(correct) >= 10
    assert np.mean(correct) >= 0.8


def check_unknown(run: Path, foreign: list[Path]) -> None:
    """Check that few known and most foreign images are unknown, for `predict` and the client."""
    truths = {row.path: row.label for row in read_entries(run) if row.split == "val"}
    bundle = run / "bundle"
    validation = list(predict(bundle, list(truths), coverage=0.95))
    assert sum(prediction.is_unknown for prediction in validation) <= 0.06 * len(truths)
    covered = [truths[prediction.path] in (prediction.label_set or ()) for prediction in validation]
    assert sum(covered) >= 0.95 * len(covered)
    predictions = list(predict(bundle, foreign))
    assert sum(prediction.is_unknown for prediction in predictions) >= 0.9 * len(foreign)
    client = [sys.executable, "-I", str(bundle / "predict.py"), *foreign]
    output = subprocess.run(client, capture_output=True, text=True, check=True).stdout
    for line, prediction in zip(output.splitlines(), predictions, strict=True):
        path, label, _, score, closest = line.split("\t")
        assert (path, label) == (str(prediction.path), prediction.label)
        assert closest == prediction.top_labels[0][0]
        assert float(score) == pytest.approx(prediction.unknown_score, abs=1e-3)
    (result,) = verify(bundle)
    assert result.passed
    assert result.gate.max_unknown_score_difference == pytest.approx(0, abs=1e-3)


def check_report(edgetl: Run, run: Path) -> str:
    """Write the pages of a run and its bundle, and return the page of the run."""
    for subject, page in ((run, run / "report.html"), (run / "bundle", run.parent / "bundle.html")):
        if subject.is_dir():
            process = edgetl("report", subject, *(() if subject == run else ("-o", page)))
            assert process.returncode == 0, process.stderr
            assert page.stat().st_size < 5_000_000
    return (run / "report.html").read_text(encoding="utf-8")


def test_short_run_on_real_photos(forked: Run, shared: Path, tmp_path: Path) -> None:
    for folder in (shared / "data/catsdogs500").glob("*/*"):
        selected = tmp_path / "data" / folder.relative_to(shared / "data/catsdogs500")
        selected.mkdir(parents=True)
        for photo in sorted(folder.iterdir())[: 80 if folder.parent.name == "train" else 40]:
            (selected / photo.name).symlink_to(photo)
    options = ("--epochs", 1, "--finetune-epochs", 1)
    weights = shared / "weights/mobilenet_v2.safetensors"
    metrics = finetune(forked, tmp_path / "data", weights, tmp_path / "run", *options)
    assert metrics["val"]["accuracy"] >= 0.93  # type: ignore[index]
    check_export(forked, tmp_path / "run")
    check_activation_maps(tmp_path / "run")
    check_unknown(tmp_path / "run", sorted((shared / "data/flowers5/val").rglob("*.jpg"))[::8])
    page = check_report(forked, tmp_path / "run")
    assert page.count("data:image/jpeg") == 1, "the worst mistakes"
    assert "Accuracy over time" in page
    assert '<section id="variants">' in page


def test_unreadable_files_are_skipped_and_listed(forked: Run, shared: Path, tmp_path: Path) -> None:
    """Training continues with readable images and lists exactly the files no decoder reads."""
    for label in ("roses", "tulips"):
        for path in sorted((shared / "data/flowers5/train" / label).iterdir())[:24]:
            (tmp_path / "data" / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "data" / label)
    for path in (shared / "data/odd").iterdir():
        shutil.copy(path, tmp_path / "data/roses")
    metrics = finetune(
        forked, tmp_path / "data", shared / "weights", tmp_path / "run",
        "--model", "squeezenet1_1", "--image-size", 64, "--epochs", 1, "--finetune-epochs", 0,
    )  # fmt: skip
    with (tmp_path / "run/rejected.csv").open(newline="") as stream:
        rejected = {Path(row["path"]).name for row in csv.DictReader(stream)}
    # Hidden system files are not listed; NOTES.tsv is a text file.
    assert rejected == UNREADABLE - {".DS_Store"} | {"NOTES.tsv"}
    assert metrics["train"]["images"] + metrics["val"]["images"] == 48 + 30 - len(UNREADABLE)  # type: ignore[index]
    page = check_report(forked, tmp_path / "run")
    assert all(name in page for name in rejected)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("name", "min_accuracy"), [("catsdogs500", 0.95), ("flowers5", 0.84)])
def test_default_recipe_on_real_photos(
    edgetl: Run, shared: Path, tmp_path: Path, name: str, min_accuracy: float
) -> None:
    metrics = finetune(
        edgetl,
        shared / "data" / name,
        shared / "weights/mobilenet_v2.safetensors",
        tmp_path / "run",
    )
    assert metrics["val"]["accuracy"] >= min_accuracy  # type: ignore[index]
    check_export(edgetl, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_default_recipe_on_one_folder_of_classes(edgetl: Run, shared: Path, tmp_path: Path) -> None:
    """Train on five classes in one folder, split 80 to 20."""
    metrics = finetune(
        edgetl,
        shared / "data/flowers5/train",
        shared / "weights/mobilenet_v2.safetensors",
        tmp_path / "run",
    )
    assert metrics["val"]["images"] in range(97, 102)  # type: ignore[index]
    assert metrics["val"]["accuracy"] >= 0.84  # type: ignore[index]
    check_export(edgetl, tmp_path / "run")
