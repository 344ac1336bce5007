"""Synthetic run directories and bundles with the files that pages read."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgetl.core.artifacts.bundle import (
    AccuracyRecord,
    BuildReport,
    BundleManifest,
    FileRecord,
    GoldenRecord,
    LatencyRecord,
    NetworkParity,
    ParityRecord,
    PathParity,
    RunReference,
    VariantRecord,
    write_bundle_manifest,
)
from edgetl.core.artifacts.confidence import (
    CalibrationFigures,
    CalibrationRecord,
    CoverageLevel,
    UnknownDetector,
    UnknownFigures,
    UnknownRecord,
)
from edgetl.core.artifacts.confidence_summary import METHOD_NAMES
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.files import sha256_file, write_json
from edgetl.core.paths import BundleDirectory, RunDirectory
from edgetl.core.preprocessing import Preprocessing
from edgetl.core.statistics import class_scores, macro_f1, wilson_interval

CLASSES = ("daisy", "roses", "tulips")
CONFUSION = ((9, 1, 0), (0, 7, 3), (0, 1, 9))
"""Confusion matrix [true][predicted] of the run."""
UNKNOWN_METHOD = METHOD_NAMES["knn"]
"""Name of the unknown score of a confident bundle."""


def write_run(
    path: Path,
    classes: Sequence[str] = CLASSES,
    confusion: Sequence[Sequence[int]] = CONFUSION,
    finished: bool = True,
    validated: bool = True,
    tested: bool = False,
    older: bool = False,
    data: Path = Path("/photos/flowers"),
    **config: Any,
) -> RunDirectory:
    """Write a run with phases of 4 and 3 epochs; the sixth epoch is the best.

    Args:
        path: folder of the run.
        classes: names of the classes.
        confusion: confusion matrix [true][predicted] on the validation images.
        finished: write metrics, plots and predictions.
        validated: include validation results.
        tested: include results of test images, which are as the validation images.
        older: leave out files and fields that early versions did not write: predictions, elapsed
            times and peak memory.
        data: folder of the data set.
        config: other fields of FinetuneConfig.
    """
    run = RunDirectory(path)
    counts = {
        "train": dict.fromkeys(classes, 40),
        "val": {label: sum(row) for label, row in zip(classes, confusion, strict=True)},
    }
    if tested:
        counts["test"] = counts["val"]
    write_json(
        run.config,
        {
            "config": FinetuneConfig(
                data=data, weights="/weights/net.safetensors", **config
            ).to_json(),
            "classes": list(classes),
            "preprocessing": Preprocessing.for_image_size(64).to_json(),
            "versions": {"edgetl": "0.1.0", "torch": None},
            "data": {
                "fingerprint": "ab" * 32,
                "counts": counts,
                "rejected": 1,
                "warnings": ["2 images are in both parts."],
            },
            "weights": {"source": "/weights/net.safetensors", "sha256": "cd" * 32},
        },
    )
    run.rejected_files.write_text(
        "path,reason\ntrain/roses/broken.jpg,cannot be decoded.\n", encoding="utf-8"
    )
    _write_history(run, validated, older)
    if finished:
        _write_metrics(run, classes, confusion, validated, tested, older)
        run.plots.mkdir()
        noise = np.random.default_rng(0).integers(0, 255, (400, 600, 3), np.uint8)
        for name in ("mistakes", "confusion_matrix"):
            Image.fromarray(noise).save(run.plots / f"{name}.png")
        if validated and not older:
            _write_predictions(run.predictions, classes, confusion)
        if tested:
            _write_predictions(run.test_predictions, classes, confusion)
    return run


def _write_history(run: RunDirectory, validated: bool, older: bool) -> None:
    lines = []
    for epoch in range(1, 8):
        accuracy = 0.5 + 0.05 * min(epoch, 6) - (0.05 if epoch == 7 else 0)
        line: dict[str, Any] = {
            "phase": 1 if epoch < 5 else 2,
            "epoch": epoch,
            "train_loss": 1 / epoch,
            "train_accuracy": accuracy + 0.1,
        }
        line |= {
            "val_loss": 1.1 / epoch if validated else None,
            "val_accuracy": accuracy if validated else None,
        }
        line |= {"lr": 1e-3, "seconds": 2.0, "images_per_second": 60.0} | (
            {} if older else {"elapsed": 5 + 2.0 * epoch}
        )
        lines.append(json.dumps(line) + "\n")
    run.history.write_text("".join(lines), encoding="utf-8")


def _write_metrics(
    run: RunDirectory,
    classes: Sequence[str],
    confusion: Sequence[Sequence[int]],
    validated: bool,
    tested: bool,
    older: bool,
) -> None:
    total = sum(map(sum, confusion))
    hits = sum(confusion[index][index] for index in range(len(classes)))
    scores = zip(classes, class_scores(confusion), strict=True)
    val = {
        "images": total,
        "accuracy": hits / total,
        "accuracy_ci95": list(wilson_interval(hits, total)),
        "top5_accuracy": None,
        "loss": 0.4,
        "calibration_error": 0.05,
        "macro_f1": macro_f1(confusion),
        "per_class": {label: vars(score) for label, score in scores},
    }
    peaks = {} if older else {"peak_memory_bytes": 900 * 2**20, "peak_gpu_memory_bytes": None}
    write_json(
        run.metrics,
        {
            "model": "mobilenet_v2",
            "classes": list(classes),
            "train": {"images": 120, "accuracy": 0.975},
            "val": val if validated else None,
            **({"test": val} if tested else {}),
            "seconds": {
                "total": 21.5,
                "reading": 2.0,
                "frozen_blocks": 3.0,
                "phase1": 8.0,
                "phase2": 6.0,
                "evaluation": 1.0,
            },
            "parameters": {"total": 2_000_000, "trainable": 500_000},
            "device": "cpu",
            "precision": "bf16",
            "weights": {"source": "/weights/net.safetensors", "sha256": "cd" * 32},
            "best_epoch": 6,
            "ended": "all epochs",
            **peaks,
        },
    )


def _write_predictions(
    path: Path, classes: Sequence[str], confusion: Sequence[Sequence[int]]
) -> None:
    rows = []
    number = 0
    for true, counts in enumerate(confusion):
        for predicted, count in enumerate(counts):
            for _ in range(count):
                number += 1
                probability = 0.5 + 0.4 * (number / 40 % 1)
                rows.append(
                    (
                        f"{classes[true]}/{number}.jpg",
                        classes[true],
                        classes[predicted],
                        f"{probability:.6f}",
                        f"{1 - probability:.6f}",
                    )
                )
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("path", "label", "predicted", "probability", "label_probability"))
        writer.writerows(rows)


def write_bundle(
    path: Path,
    labels: Sequence[str] = CLASSES,
    timed: bool = True,
    confident: bool = False,
    **changes: Any,
) -> BundleDirectory:
    """Write a bundle with fp32 and a recommended int8 variant; the files are placeholders.

    Args:
        path: folder of the bundle.
        labels: names of the classes.
        timed: whether the variants have latencies.
        confident: add test accuracies, calibration, unknown scores and prediction sets.
        changes: other fields of BundleManifest.
    """
    bundle = BundleDirectory(path)
    bundle.golden.mkdir(parents=True)
    for name in ("fp32", "int8"):
        bundle.variant(name).write_bytes(name.encode() * 100)
    bundle.client.write_text("# client\n", encoding="utf-8")
    bundle.cpp_client.write_text("// client\n", encoding="utf-8")
    bundle.golden_logits.write_bytes(b"logits")
    photos = [bundle.golden / f"{number}_photo.jpg" for number in range(2)]
    for photo in photos:
        Image.new("RGB", (40, 30), (200, 80, 40)).save(photo)

    def record(file: Path) -> FileRecord:
        return FileRecord(file.relative_to(path).as_posix(), sha256_file(file))

    variants = [_fp32_variant(bundle, timed), _int8_variant(bundle, timed)]
    if confident:
        variants = [_add_confidence(variant) for variant in variants]
    manifest = BundleManifest(
        edgetl="0.1.0",
        run=RunReference("0123456789ab", "mobilenet_v2", "net.safetensors"),
        labels=tuple(labels),
        preprocessing=Preprocessing.for_image_size(64),
        recommended="int8",
        golden=GoldenRecord(
            "validation",
            0.05,
            tuple(record(photo) for photo in photos),
            record(bundle.golden_logits),
        ),
        client=record(bundle.client),
        cpp_client=record(bundle.cpp_client),
        versions={"torch": "2.9.0"},
        variants=tuple(variants),
    )
    write_bundle_manifest(bundle, replace(manifest, **changes))
    return bundle


_LATENCY = LatencyRecord(p50_ms=5.0, threads=2, cpu="Cortex-A76", rounds=6)
_ACCURACY = AccuracyRecord("validation", 30, 25 / 30, (0.66, 0.93), 0.83, drop=0.0, flips=0)


def _fp32_variant(bundle: BundleDirectory, timed: bool) -> VariantRecord:
    file = bundle.variant("fp32")
    return VariantRecord(
        name="fp32",
        file=file.name,
        sha256=sha256_file(file),
        bytes=8_900_000,
        precision="fp32",
        input="image",
        opset=18,
        parity=ParityRecord(
            PathParity(30, "validation", 0.007, 0.05, 1.0),
            NetworkParity(30, "validation", 8e-6, 1e-3),
        ),
        accuracy=_ACCURACY,
        latency=_LATENCY if timed else None,
    )


def _int8_variant(bundle: BundleDirectory, timed: bool) -> VariantRecord:
    latency = replace(_LATENCY, p50_ms=2.5, speedup=2.0, interval=(1.6, 2.4), verdict="faster")
    file = bundle.variant("int8")
    return replace(
        _fp32_variant(bundle, timed),
        name="int8",
        file=file.name,
        sha256=sha256_file(file),
        bytes=2_500_000,
        precision="int8",
        parity=ParityRecord(PathParity(30, "validation", 0.4, 0.5, 0.9)),
        accuracy=replace(_ACCURACY, top1=0.8, drop=3.3, flips=3),
        latency=latency if timed else None,
        report=BuildReport(method="U8S8 per channel"),
    )


def _add_confidence(variant: VariantRecord) -> VariantRecord:
    """Add every record; calibration helps fp32 only."""
    helps = variant.name == "fp32"
    return replace(
        variant,
        test_accuracy=AccuracyRecord("test", 40, 0.775, (0.62, 0.88), 0.77, drop=0.0, flips=0),
        calibration=CalibrationRecord(
            temperature=1.42 if helps else 1.0,
            images=30,
            before=CalibrationFigures(0.083, (0.061, 0.112), 0.52, 0.31),
            after=CalibrationFigures(0.031, (0.019, 0.055), 0.44, 0.29),
        ),
        unknown=UnknownRecord(
            UnknownDetector("knn", 0.95),
            images=30,
            figures={
                "left_out_class": UnknownFigures(30, 0.862, (0.79, 0.91), 0.612, (0.43, 0.77)),
                "generated": UnknownFigures(32, 0.999, (0.98, 1.0), 1.0, (0.89, 1.0)),
            },
            candidates={"knn": 0.93, "energy": 0.88},
        ),
        prediction_sets=(CoverageLevel(0.95, 0.231),),
    )
