"""The rate of training steps: synthetic data on the device against JPEG files, by edgetl's own trainer."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.paths import RunDirectory
from edgetl.device.hardware.cpu import available_cores
from edgetl.train.common.precision import ComputeConfig, choose_compute_config
from edgetl.train.common.progress import NullProgress
from edgetl.train.data.augmentation import Augmentation
from edgetl.train.data.decoded_cache import DecodedImageCache
from edgetl.train.data.gpu_images import DeviceImageCache
from edgetl.train.data.gpu_loader import DeviceLoader
from edgetl.train.data.loader import ImageDataset, ImageLoader, default_workers
from edgetl.train.data.splits import SplitEntry
from edgetl.train.engine.optim import Loss
from edgetl.train.engine.phase_builder import TrainablePhase
from edgetl.train.engine.phase_loop import PhaseLoop
from edgetl.train.engine.phases import Phase
from edgetl.train.engine.trainer import Trainer
from edgetl.train.features.batches import (
    Batch,
    BatchLoader,
    BatchSource,
    EpochSampler,
    StreamingBatches,
)
from edgetl.train.model.factory import build_adapted_model
from edgetl.train.model.freezing import set_trainable
from edgetl.train.model.torchvision_models import preprocessing_for
from tools.checks.gpu_check.plain_step import COMPILED, VARIANTS, plain_step_ms
from tools.checks.gpu_check.preparation import large_photos
from tools.checks.gpu_check.profile import launches_and_device_ms
from tools.checks.gpu_check.record import Record
from tools.checks.gpu_check.settings import Settings
from tools.checks.gpu_check.timed_feed import StepTimes, TimedFeed

LEAST_RATIO = 0.9
"""Of the rate on synthetic data that training from JPEG files of 500 pixels must reach."""
DECODED, KEPT, ON_DEVICE = (
    "decoded on the CPU every time",
    "decoded images kept",
    "decoded on the device, kept there",
)
INPUT_PATHS = (DECODED, KEPT, ON_DEVICE)
KEPT_BYTES = 16 * 2**30


def check_step_rate(settings: Settings, record: Record) -> None:
    """Step `step_rate`."""
    batch_sizes = (4,) if settings.rehearsal else (64, 256)
    rates = {}
    for batch_size in batch_sizes:
        rates[batch_size] = _synthetic(settings, record, batch_size)
        _try_jpeg(settings, record, batch_size, "500 px", rates[batch_size])
    for size in ("1080p", "12 MP"):
        if record.has_time(15, f"batch {batch_sizes[0]}, {size}"):
            _try_jpeg(settings, record, batch_sizes[0], size, rates[batch_sizes[0]])
    # Last: what compiles may take its time.
    for variant in VARIANTS:
        for batch_size in batch_sizes:
            name = f"batch {batch_size}, plain PyTorch, {variant}"
            if record.has_time(25 if variant == COMPILED else 5, name):
                with record.attempt(f"{name}: a step runs"):
                    _measure_variant(settings, record, variant, batch_size, name)


def _try_jpeg(
    settings: Settings, record: Record, batch_size: int, size: str, synthetic: float | None
) -> None:
    with record.attempt(f"batch {batch_size}, {size}: training from JPEG runs"):
        if synthetic is not None:
            _from_jpeg(settings, record, batch_size, size, synthetic)


def _synthetic(settings: Settings, record: Record, batch_size: int) -> float | None:
    steps = 3 if settings.rehearsal else 60
    rates: list[float] = []
    with record.attempt(f"batch {batch_size}: training on synthetic data runs"):
        batch = _synthetic_batch(settings, batch_size)
        times, trained_by = train(settings, lambda _epoch: iter([batch] * steps), batch_size, steps)
        count = partial(train, settings, lambda _epoch: iter([batch] * 4), batch_size, 4)
        launches, device_ms = launches_and_device_ms(count, 4, settings.device)
        record.measure(
            **{
                f"batch {batch_size}, synthetic": {
                    **figures(times, batch_size),
                    "launches_per_step": launches,
                    "kernel_ms_per_step": device_ms,
                    "forward": trained_by,
                }
            }
        )
        rates.append(batch_size / times.wall_ms * 1e3)
    return rates[0] if rates else None


def _from_jpeg(
    settings: Settings, record: Record, batch_size: int, size: str, synthetic: float
) -> None:
    folder = settings.data if size == "500 px" else large_photos(settings, size)
    best = 0.0
    for path in INPUT_PATHS:
        name = f"batch {batch_size}, {size}, {path}"
        with record.attempt(f"{name} runs"):
            # A loop over large photos may be slow: fewer steps, of the same batches.
            steps = 3 if settings.rehearsal else {"500 px": 40, "1080p": 12, "12 MP": 8}[size]
            source = jpeg_batches(settings, folder, batch_size, steps, path)
            times, _ = train(settings, source.iter_train_batches, batch_size, steps)
            rate = batch_size / times.wall_ms * 1e3
            best = max(best, rate)
            record.measure(
                **{name: {**figures(times, batch_size), "ratio_to_synthetic": rate / synthetic}}
            )
    if size == "500 px":
        needed = 0.0 if settings.rehearsal else LEAST_RATIO
        text = (
            f"batch {batch_size}: JPEG of 500 px reaches {needed:g} of the rate on synthetic data"
        )
        record.require(text, best / synthetic >= needed, f"{best / synthetic:.3f}")


def _measure_variant(
    settings: Settings, record: Record, variant: str, batch_size: int, name: str
) -> None:
    network, batch = whole_network(settings), _synthetic_batch(settings, batch_size)
    wall, device = plain_step_ms(
        variant, network, batch, 1 if settings.rehearsal else 20, settings.device
    )
    record.measure(**{name: {"wall_ms": wall, "device_ms": device}})


def train(settings: Settings, batches: Any, batch_size: int, steps: int) -> tuple[StepTimes, str]:
    """Train one epoch of the whole network with edgetl's loop; returns a step's times and what ran its forward pass."""
    warm = min(steps // 3, 10)
    feed = TimedFeed(batches, batch_size, steps, warm, settings.device)
    epochs, training = make_epochs(settings, feed, batch_size * steps)
    epochs.run_epoch()
    reports = getattr(training, "steps", {})
    return feed.times, str(getattr(reports.get(1), "runner", "eager"))


def make_epochs(settings: Settings, feed: BatchSource, images: int) -> tuple[PhaseLoop, Trainer]:
    """Build edgetl's training loop over all blocks of MobileNetV2."""
    config = train_config(settings)
    computing = choose_compute_config(config.device, config.precision)
    adapted = build_adapted_model("mobilenet_v2", settings.image_size, 4, 0, 0.2, None)
    adapted.model.to(computing.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = RunDirectory(settings.folder / "step-rate")
    run.path.mkdir(exist_ok=True)
    loss = Loss(config, torch.zeros(4, dtype=torch.int64), 4, computing.device)
    training = Trainer(
        config, run, adapted, loss, images, has_validation=False, progress=NullProgress()
    )
    stage = TrainablePhase(
        Phase(1, 1, 1e-3, "all", freeze_statistics=False), feed, adapted.model, computing
    )
    freezing = set_trainable(adapted, "all", freeze_statistics=False)
    training.phase = stage.phase
    return PhaseLoop(training, stage, freezing, 1), training


def train_config(settings: Settings) -> FinetuneConfig:
    """The configuration of the loop: edgetl's defaults."""
    device = "cuda" if settings.device == "cuda" else "cpu"
    return FinetuneConfig(settings.data, device=device, weights="none", seed=settings.seed)  # type: ignore[arg-type]


def jpeg_batches(
    settings: Settings, folder: Path, batch_size: int, steps: int, path: str
) -> StreamingBatches:
    """Feed from the files of `folder`, repeated until the steps are full, with edgetl's loader and augmentation."""
    rows = [
        SplitEntry(path, path.parent.name, "train")
        for path in sorted(folder.glob("*/*"))
        if path.is_file()
    ]
    labels = sorted({row.label for row in rows})
    preprocessing = preprocessing_for("mobilenet_v2", settings.image_size)
    decoded = DecodedImageCache(
        KEPT_BYTES if path == KEPT else 0, max(768, 3 * preprocessing.resize)
    )
    augmentation = Augmentation("light", preprocessing, settings.seed)
    images = ImageDataset(rows, labels, augmentation, preprocessing, decoded)
    workers = default_workers(len(rows) * 64, available_cores(), settings.device)
    on_cpu = ImageLoader(images, workers, pin_memory=settings.device == "cuda")
    loader: BatchLoader = on_cpu
    if path == ON_DEVICE:
        device = computing(settings).device
        kept = DeviceImageCache(decoded, device, KEPT_BYTES)
        loader = DeviceLoader(on_cpu, kept, preprocessing.crop, device)
    indices = [index % len(rows) for index in range(batch_size * steps)]
    order = EpochSampler(images.labels(indices) % 4, "shuffled", batch_size, settings.seed)
    return StreamingBatches(
        loader, indices, [], order, None, None, preprocessing, computing(settings)
    )


def computing(settings: Settings) -> ComputeConfig:
    """The device and precision that edgetl chooses."""
    config = train_config(settings)
    return choose_compute_config(config.device, config.precision)


def whole_network(settings: Settings) -> torch.nn.Module:
    """MobileNetV2 with a new head, on the device, channels last."""
    adapted = build_adapted_model("mobilenet_v2", settings.image_size, 4, 0, 0.2, None)
    network: torch.nn.Module = adapted.model
    return network.to(settings.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _synthetic_batch(settings: Settings, batch_size: int) -> Batch:
    side = settings.image_size
    pixels = torch.randn(batch_size, 3, side, side, device=settings.device)
    labels = torch.arange(batch_size, device=settings.device) % 4
    return (pixels.contiguous(memory_format=torch.channels_last),), labels


def figures(times: StepTimes, batch_size: int) -> dict[str, Any]:
    """A step's times and the images a second that follow from them."""
    return {**asdict(times), "images_per_second": batch_size / times.wall_ms * 1e3}
