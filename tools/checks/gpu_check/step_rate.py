"""Training step rate of edgetl's trainer: JPEG files compared with synthetic data on the device."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from edgetl.core.artifacts.split import SplitEntry
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.progress import NullProgress
from edgetl.device.hardware.cpu import available_cores
from edgetl.train.common.precision import ComputeConfig, choose_compute_config
from edgetl.train.data.augmentation import Augmentation
from edgetl.train.data.decoded_cache import DecodedImageCache
from edgetl.train.data.gpu_images import DeviceImageCache
from edgetl.train.data.gpu_loader import DeviceLoader
from edgetl.train.data.loader import ImageDataset, ImageLoader, default_workers
from edgetl.train.engine.optim import Loss
from edgetl.train.engine.phase_loop import PhaseLoop, TrainContext
from edgetl.train.engine.phases import Phase, TrainablePhase
from edgetl.train.features.batches import (
    Batch,
    BatchLoader,
    BatchSource,
    EpochSampler,
    StreamingBatches,
)
from edgetl.train.model.factory import build_adapted_model
from edgetl.train.model.freezing import set_trainable
from edgetl.train.model.stock_models import preprocessing_for
from tools.checks.gpu_check.plain_step import COMPILED, VARIANTS, plain_step_ms
from tools.checks.gpu_check.preparation import large_photos
from tools.checks.gpu_check.profile import launches_and_device_ms
from tools.checks.gpu_check.record import Record
from tools.checks.gpu_check.settings import Settings
from tools.checks.gpu_check.timed_batches import StepTimes, TimedBatches

MIN_RATIO = 0.9
"""Required rate with JPEG files of 500 pixels, relative to synthetic data."""
UNCACHED, CACHED, ON_DEVICE = (
    "decoded on the CPU every time",
    "decoded images kept",
    "decoded on the device, kept there",
)
INPUT_PATHS = (UNCACHED, CACHED, ON_DEVICE)
CACHE_BYTES = 16 * 2**30


def check_step_rate(settings: Settings, record: Record) -> None:
    """Run step `step_rate`: synthetic data, JPEG files, and plain PyTorch."""
    batch_sizes = (4,) if settings.rehearsal else (64, 256)
    rates = {}
    for batch_size in batch_sizes:
        rates[batch_size] = _measure_synthetic(settings, record, batch_size)
        _try_measuring_jpeg(settings, record, batch_size, "500 px", rates[batch_size])
    for size in ("1080p", "12 MP"):
        if record.has_time(15, f"batch {batch_sizes[0]}, {size}"):
            _try_measuring_jpeg(settings, record, batch_sizes[0], size, rates[batch_sizes[0]])
    # torch.compile is the last variant, because compiling may take long.
    for variant in VARIANTS:
        for batch_size in batch_sizes:
            name = f"batch {batch_size}, plain PyTorch, {variant}"
            if record.has_time(25 if variant == COMPILED else 5, name):
                with record.attempt(f"{name}: a step runs"):
                    _measure_variant(settings, record, variant, batch_size, name)


def _try_measuring_jpeg(
    settings: Settings, record: Record, batch_size: int, size: str, synthetic_rate: float | None
) -> None:
    with record.attempt(f"batch {batch_size}, {size}: training from JPEG runs"):
        if synthetic_rate is not None:
            _measure_jpeg(settings, record, batch_size, size, synthetic_rate)


def _measure_synthetic(settings: Settings, record: Record, batch_size: int) -> float | None:
    steps = 3 if settings.rehearsal else 60
    rates: list[float] = []
    with record.attempt(f"batch {batch_size}: training on synthetic data runs"):
        batch = _synthetic_batch(settings, batch_size)
        times, runner = train(settings, lambda _epoch: iter([batch] * steps), batch_size, steps)
        train_four = partial(train, settings, lambda _epoch: iter([batch] * 4), batch_size, 4)
        launches, device_ms = launches_and_device_ms(train_four, 4, settings.device)
        figures = {
            **step_figures(times, batch_size),
            "launches_per_step": launches,
            "kernel_ms_per_step": device_ms,
            "forward": runner,
        }
        record.measure(**{f"batch {batch_size}, synthetic": figures})
        rates.append(batch_size / times.wall_ms * 1e3)
    return rates[0] if rates else None


def _measure_jpeg(
    settings: Settings, record: Record, batch_size: int, size: str, synthetic_rate: float
) -> None:
    folder = settings.data if size == "500 px" else large_photos(settings, size)
    best = 0.0
    for path in INPUT_PATHS:
        name = f"batch {batch_size}, {size}, {path}"
        with record.attempt(f"{name} runs"):
            # Reading large photos may be slow, so they get fewer steps with the same batch size.
            steps = 3 if settings.rehearsal else {"500 px": 40, "1080p": 12, "12 MP": 8}[size]
            source = make_jpeg_batches(settings, folder, batch_size, steps, path)
            times, _ = train(settings, source.iter_train_batches, batch_size, steps)
            rate = batch_size / times.wall_ms * 1e3
            best = max(best, rate)
            ratio = rate / synthetic_rate
            figures = {**step_figures(times, batch_size), "ratio_to_synthetic": ratio}
            record.measure(**{name: figures})
    if size == "500 px":
        required = 0.0 if settings.rehearsal else MIN_RATIO
        ratio = best / synthetic_rate
        text = f"batch {batch_size}: JPEG of 500 px reaches {required:g} of the synthetic rate"
        record.require(text, ratio >= required, f"{ratio:.3f}")


def _measure_variant(
    settings: Settings, record: Record, variant: str, batch_size: int, name: str
) -> None:
    model = build_model(settings)
    batch = _synthetic_batch(settings, batch_size)
    runs = 1 if settings.rehearsal else 20
    wall_ms, device_ms = plain_step_ms(variant, model, batch, runs, settings.device)
    record.measure(**{name: {"wall_ms": wall_ms, "device_ms": device_ms}})


def train(settings: Settings, batches: Any, batch_size: int, steps: int) -> tuple[StepTimes, str]:
    """Train all blocks for one epoch with edgetl's loop.

    Args:
        settings: settings of the check.
        batches: function from the epoch number to its batches.
        batch_size: images per step.
        steps: steps of the epoch.

    Returns:
        The times of a step, and the name of the runner of its forward pass.
    """
    warmup_steps = min(steps // 3, 10)
    batch_source = TimedBatches(batches, batch_size, steps, warmup_steps, settings.device)
    loop = make_phase_loop(settings, batch_source, batch_size * steps)
    loop.train_epoch(1)
    return batch_source.times, loop.step_report.runner


def make_phase_loop(settings: Settings, batch_source: BatchSource, images: int) -> PhaseLoop:
    """Build edgetl's training loop over all blocks of MobileNetV2."""
    config = train_config(settings)
    compute_config = choose_compute_config(config.device, config.precision)
    device = compute_config.device
    adapted = build_adapted_model("mobilenet_v2", settings.image_size, 4, 0, 0.2, None)
    adapted.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    loss = Loss(config, torch.zeros(4, dtype=torch.int64), 4, device)
    context = TrainContext(config, adapted, loss, images, NullProgress())
    phase = Phase(1, 1, 1e-3, "all", freeze_statistics=False)
    trainable_phase = TrainablePhase(phase, batch_source, adapted.model, compute_config)
    freezing = set_trainable(adapted, "all", freeze_statistics=False)
    return PhaseLoop(context, trainable_phase, freezing, 1)


def train_config(settings: Settings) -> FinetuneConfig:
    """Return the training configuration: edgetl's defaults."""
    device = "cuda" if settings.device == "cuda" else "cpu"
    return FinetuneConfig(settings.data, device=device, weights="none", seed=settings.seed)  # type: ignore[arg-type]


def make_jpeg_batches(
    settings: Settings, folder: Path, batch_size: int, steps: int, input_path: str
) -> StreamingBatches:
    """Build batches with edgetl's loader and augmentation.

    Args:
        settings: settings of the check.
        folder: class folders of images, repeated until all steps are filled.
        batch_size: images per step.
        steps: steps per epoch.
        input_path: one of INPUT_PATHS.
    """
    entries = [
        SplitEntry(path, path.parent.name, "train")
        for path in sorted(folder.glob("*/*"))
        if path.is_file()
    ]
    labels = sorted({entry.label for entry in entries})
    preprocessing = preprocessing_for("mobilenet_v2", settings.image_size)
    decoded_cache = DecodedImageCache(
        CACHE_BYTES if input_path == CACHED else 0, max(768, 3 * preprocessing.resize)
    )
    augmentation = Augmentation("light", preprocessing, settings.seed)
    dataset = ImageDataset(entries, labels, augmentation, preprocessing, decoded_cache)
    workers = default_workers(len(entries) * 64, available_cores(), settings.device)
    cpu_loader = ImageLoader(dataset, workers, pin_memory=settings.device == "cuda")
    loader: BatchLoader = cpu_loader
    if input_path == ON_DEVICE:
        device = compute_config(settings).device
        device_cache = DeviceImageCache(decoded_cache, device, CACHE_BYTES)
        loader = DeviceLoader(cpu_loader, device_cache, preprocessing.crop, device)
    indices = [index % len(entries) for index in range(batch_size * steps)]
    sampler = EpochSampler(dataset.labels(indices) % 4, "shuffled", batch_size, settings.seed)
    return StreamingBatches(
        loader, indices, [], sampler, None, None, preprocessing, compute_config(settings)
    )


def compute_config(settings: Settings) -> ComputeConfig:
    """Return the device and the precision that edgetl chooses."""
    config = train_config(settings)
    return choose_compute_config(config.device, config.precision)


def build_model(settings: Settings) -> torch.nn.Module:
    """Build MobileNetV2 with a new head, on the device, channels last."""
    adapted = build_adapted_model("mobilenet_v2", settings.image_size, 4, 0, 0.2, None)
    model: torch.nn.Module = adapted.model
    return model.to(settings.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _synthetic_batch(settings: Settings, batch_size: int) -> Batch:
    side = settings.image_size
    pixels = torch.randn(batch_size, 3, side, side, device=settings.device)
    labels = torch.arange(batch_size, device=settings.device) % 4
    return (pixels.contiguous(memory_format=torch.channels_last),), labels


def step_figures(times: StepTimes, batch_size: int) -> dict[str, Any]:
    """Return the times of a step and the resulting images per second."""
    return {**asdict(times), "images_per_second": batch_size / times.wall_ms * 1e3}
