"""Shared inputs of the steps: photos, a MobileNetV2 run, and its image and tensor bundles."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from edgetl.core.artifacts.bundle import LatencyRecord
from edgetl.core.config.export import ExportConfig, InputKind
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.paths import RunDirectory
from edgetl.export import exporter
from edgetl.train.finetune import finetune
from tools.checks.gpu_check.photos import SIZES, write_photos
from tools.checks.gpu_check.record import Record
from tools.checks.gpu_check.settings import BUILTIN, Settings

IMAGE_VARIANTS = ("fp32", "fp16", "int8")
TENSOR_VARIANTS = ("fp32", "fp16")
UNTIMED = LatencyRecord(
    p50_ms=None,
    threads=1,
    cpu=None,
    rounds=0,
    reason="the GPU check does not time variants on the CPU",
)


def prepare_photos(settings: Settings, record: Record) -> None:
    """Run step `photos`: generate photos, or use the user's for the small size."""
    sizes = {"1080p": 8, "12 MP": 4}
    if settings.photos is None:
        per_class = 20 if settings.rehearsal else 125
        write_photos(settings.data, SIZES["500 px"], per_class, settings.seed)
    for name, count in sizes.items():
        per_class = 1 if settings.rehearsal else count
        write_photos(large_photos(settings, name), SIZES[name], per_class, settings.seed)
    for folder in (settings.data, *(large_photos(settings, name) for name in sizes)):
        files = [path for path in folder.glob("*/*") if path.is_file()]
        record.measure(**{f"{folder.name}: files, mean KiB": [len(files), mean_kib(files)]})
        classes = len({path.parent for path in files})
        record.require(f"{folder.name} has photos of several classes", classes > 1, classes)


def prepare_bundles(settings: Settings, record: Record) -> None:
    """Run step `bundles`: train a run and export it for images and for tensors."""
    started = time.perf_counter()
    run = finetune(run_config(settings))
    accuracy = json.loads(run.metrics.read_text(encoding="utf-8"))["val"]["accuracy"]
    # An untrained model gives every image the same logits, and any two runtimes would agree.
    required = 0.0 if settings.rehearsal else 0.5
    text = f"the run's accuracy is at least {required:.0%}"
    record.require(text, accuracy >= required, accuracy)
    shutil.copytree(run.path, settings.tensor_run)
    record.measure(run_s=time.perf_counter() - started)
    # Export in parallel: each export is single-threaded most of the time.
    exports = [
        _start_export(settings.run, "image", IMAGE_VARIANTS),
        _start_export(settings.tensor_run, "tensor", TENSOR_VARIANTS),
    ]
    for process in exports:
        process.wait()
    record.measure(bundles_s=time.perf_counter() - started)
    for folder, variants in (
        (settings.run, IMAGE_VARIANTS),
        (settings.tensor_run, TENSOR_VARIANTS),
    ):
        written = sorted(file.stem for file in (folder / "bundle").glob("*.onnx"))
        text = f"{folder.name} has a bundle with {', '.join(variants)}"
        record.require(text, set(variants) <= set(written), ", ".join(written))


def _start_export(run: Path, kind: str, variants: Sequence[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tools.checks.gpu_check.preparation", str(run), kind]
    return subprocess.Popen([*command, ",".join(variants)])


def export(run: Path, kind: InputKind, variants: Sequence[str]) -> None:
    """Export a run without timing its variants on the CPU, which takes most of an export.

    Args:
        run: run directory.
        kind: `image` or `tensor`.
        variants: names of the variants.
    """
    exporter.measure_variant_latencies = lambda *_: dict.fromkeys(variants, UNTIMED)  # type: ignore[attr-defined]
    # Accept any accuracy drop: only the runtime is checked here.
    config = ExportConfig(
        input=kind, variants=tuple(variants), max_accuracy_drop=100.0, search="quick"
    )
    exporter.export_run(RunDirectory.open(run), config)


def mean_kib(files: Sequence[Path]) -> float:
    """Return the mean file size in KiB."""
    return sum(path.stat().st_size for path in files) / max(1, len(files)) / 1024


def run_config(settings: Settings) -> FinetuneConfig:
    """Return the configuration of the MobileNetV2 run, with the user's weights if there are any."""
    return FinetuneConfig(
        data=settings.data,
        output=settings.run,
        model="mobilenet_v2",
        weights="none" if settings.weights == BUILTIN else settings.weights,
        image_size=settings.image_size,
        epochs=2 if settings.rehearsal else 10,
        finetune_epochs=0,
        device="cuda" if settings.device == "cuda" else "cpu",
        seed=settings.seed,
    )


def large_photos(settings: Settings, name: str) -> Path:
    """Return the folder of generated photos of a size above 500 pixels."""
    return settings.folder / f"photos-{name.replace(' ', '')}"


if __name__ == "__main__":
    export(Path(sys.argv[1]), cast(InputKind, sys.argv[2]), sys.argv[3].split(","))
