"""What several steps use: photos, a MobileNetV2 run, and its bundles for images and for tensors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from edgetl.core.finetuning import FinetuneConfig
from edgetl.train.finetune import finetune
from tools.checks.gpu_check.photos import SIZES, write_photos
from tools.checks.gpu_check.record import Record
from tools.checks.gpu_check.settings import BUILTIN, Settings

IMAGE_VARIANTS = ("fp32", "fp16", "int8")
TENSOR_VARIANTS = ("fp32", "fp16")


def prepare(settings: Settings, record: Record) -> None:
    """Step `preparation`."""
    started = time.perf_counter()
    if settings.photos is None:
        per_class = 20 if settings.rehearsal else 125
        write_photos(settings.data, SIZES["500 px"], per_class, settings.seed)
    run = finetune(run_config(settings))
    accuracy = json.loads(run.metrics.read_text(encoding="utf-8"))["val"]["accuracy"]
    # An untrained network answers every image alike, and any two runtimes would agree.
    least = 0.0 if settings.rehearsal else 0.5
    record.require(f"the run answers {least:.0%} of its images right", accuracy >= least, accuracy)
    shutil.copytree(run.path, settings.tensor_run)
    record.measure(run_s=time.perf_counter() - started)
    # Side by side: both wait for one thread most of the time.
    exports = [
        _start_export(settings.run, "image", IMAGE_VARIANTS),
        _start_export(settings.tensor_run, "tensor", TENSOR_VARIANTS),
    ]
    for name, count in (("1080p", 8), ("12 MP", 4)):
        per_class = 1 if settings.rehearsal else count
        write_photos(large_photos(settings, name), SIZES[name], per_class, settings.seed)
    for process in exports:
        process.wait()
    record.measure(bundles_s=time.perf_counter() - started)
    for folder, variants in ((settings.run, IMAGE_VARIANTS), (settings.tensor_run, TENSOR_VARIANTS)):
        written = sorted(file.stem for file in (folder / "bundle").glob("*.onnx"))
        text = f"{folder.name} has a bundle with {', '.join(variants)}"
        record.require(text, set(variants) <= set(written), ", ".join(written))


def _start_export(run: Path, kind: str, variants: Sequence[str]) -> subprocess.Popen[bytes]:
    # A variant may lose any accuracy: it is the runtime that is checked here.
    options = ["--input", kind, "--variants", ",".join(variants), "--max-accuracy-drop", "100"]
    command = [sys.executable, "-m", "edgetl", "export", str(run), *options, "--search", "quick"]
    return subprocess.Popen(command)


def run_config(settings: Settings) -> FinetuneConfig:
    """The MobileNetV2 run: from its weights where a file was given, else trained for a moment."""
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
    """The folder of generated photos of one of the sizes beyond 500 pixels."""
    return settings.folder / f"photos-{name.replace(' ', '')}"
