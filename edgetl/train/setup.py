"""Setup of a run: check all inputs and resolve the configuration before anything is written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from edgetl.core.artifacts.measured_choices import AutoChoices, BatchSizeResult
from edgetl.core.artifacts.run_config import ModelCode
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import ConfigError
from edgetl.core.paths import RunDirectory
from edgetl.core.preprocessing import Preprocessing
from edgetl.core.progress import TrainingProgress
from edgetl.device.hardware.cpu import available_cores
from edgetl.device.hardware.memory import free_memory_bytes, keep_freed_memory
from edgetl.train.common.distributed import SINGLE_PROCESS, Processes
from edgetl.train.common.precision import ComputeConfig, choose_compute_config
from edgetl.train.common.run_choices import RunChoices, choice_unavailable_error
from edgetl.train.data.augmentation import Augmentation
from edgetl.train.data.dataset import SplitDataset, read_dataset
from edgetl.train.data.decoded_cache import DecodedImageCache
from edgetl.train.data.folders import find_files
from edgetl.train.data.loader import default_workers
from edgetl.train.engine.batch_size import autotune_batch_size, describe_batch_size
from edgetl.train.engine.phases import Phase, default_batch_size, plan_phases
from edgetl.train.model.factory import AdaptedModel, build_adapted_model
from edgetl.train.model.freezing import resolve_unfreeze
from edgetl.train.model.model_code import record_code
from edgetl.train.model.stock_models import get_architecture, preprocessing_for
from edgetl.train.model.strided_convolutions import take_strides_before_convolutions
from edgetl.train.model.weights import read_weights
from edgetl.train.model.weights_file import PretrainedWeights

_MIN_DECODED_SIDE = 768
"""Least shorter side, pixels, of training images that are decoded from JPEG at reduced size.

After the resize they equal the full image to one gray level. With a much smaller side, the edges of
random crops would be rounded visibly.
"""

FIXED_CACHE_BYTES = 4 * 2**30
"""Size limit of the feature cache with `--deterministic`, independent of the free memory.

Features are memory-mapped files, of which the kernel keeps in memory what fits.
"""


@dataclass(frozen=True)
class RunSetup:
    """A checked run, ready to start."""

    requested_config: FinetuneConfig
    """Configuration from the user."""
    config: FinetuneConfig
    """Configuration with everything resolved that does not depend on training."""
    batch_size: int
    batch_fit: BatchSizeResult | None
    """Result of `--batch-size auto`; None without it."""
    run: RunDirectory
    data: SplitDataset
    preprocessing: Preprocessing
    compute_config: ComputeConfig
    phases: list[Phase]
    augmentation: Augmentation
    decoded_cache: DecodedImageCache
    weights: PretrainedWeights | None
    code: ModelCode | None
    """Code of a model of the user's own; None for a stock architecture."""
    adapted_model: AdaptedModel
    processes: Processes
    choices: RunChoices


def prepare_run(
    config: FinetuneConfig,
    run: RunDirectory,
    progress: TrainingProgress,
    processes: Processes = SINGLE_PROCESS,
    choices: AutoChoices | None = None,
) -> RunSetup:
    """Read the images and build the model; reuse the `choices` recorded by an earlier run.

    Raises:
        DataError: see `edgetl.train.data.dataset.read_dataset`.
        ArchitectureError, WeightsError: see `edgetl.train.model.factory.build_adapted_model`.
        ConfigError: the device or precision is not available, the backbone has fewer blocks, or
            there are too many processes for the images of a step.
    """
    architecture = get_architecture(config.model, config.image_size)
    run_choices = RunChoices(choices, fixed=config.deterministic)
    compute_config = _resolve_compute_config(config, run_choices)
    if compute_config.device.type == "cpu":
        keep_freed_memory()
    preprocessing = preprocessing_for(config.model, config.image_size, config.interpolation)
    augmentation = Augmentation(config.augment, preprocessing, config.seed, config.augment_file)
    # Checked before weights are downloaded, so that a missing folder is reported at once.
    find_files(Path(config.data).expanduser().absolute())
    with processes.local_group.main_process_first():
        weights = read_weights(config.weights, config.model, preprocessing.crop)
    cache_budget, decoded_budget = processes.broadcast(_cache_budgets(config, run_choices))
    data, decoded_cache = _read_data(config, decoded_budget, preprocessing, progress, processes)
    adapted = _build_model(config, preprocessing.crop, len(data.labels), weights)
    unfreeze = _resolve_unfreeze(config, adapted, architecture.unfreeze)
    batch_size = _requested_batch_size(config, data, processes)
    _report_setup(data, config, progress)
    batch_fit = None
    if config.batch_size == "auto":
        batch_fit = _resolve_batch_fit(
            config,
            run_choices,
            adapted,
            compute_config,
            preprocessing.crop,
            len(data.entries_in("train")),
            batch_size,
            unfreeze,
            processes,
        )
        batch_size = batch_fit.batch_size
        progress.note(describe_batch_size(batch_fit, compute_config.device.type))
    resolved = replace(
        _resolve_config(config, data, compute_config, processes),
        output=run.path,
        image_size=preprocessing.crop,
        interpolation=preprocessing.interpolation,
        unfreeze=unfreeze,
        batch_size=batch_size,
        cache_budget=cache_budget,
    )
    run_choices.record(
        device=resolved.device,
        threads=torch.get_num_threads(),
        cache_budget=cache_budget,
        batch=batch_fit,
    )
    return RunSetup(
        requested_config=config,
        config=resolved,
        batch_size=batch_size,
        batch_fit=batch_fit,
        run=run,
        data=data,
        preprocessing=preprocessing,
        compute_config=compute_config,
        phases=plan_phases(config, unfreeze, batch_size, batch_fit.lr_scale if batch_fit else 1.0),
        augmentation=augmentation,
        decoded_cache=decoded_cache,
        weights=weights,
        code=record_code(config.model),
        adapted_model=adapted,
        processes=processes,
        choices=run_choices,
    )


def _read_data(
    config: FinetuneConfig,
    budget_bytes: int,
    preprocessing: Preprocessing,
    progress: TrainingProgress,
    processes: Processes,
) -> tuple[SplitDataset, DecodedImageCache]:
    decoded_cache = DecodedImageCache(
        budget_bytes // processes.local_group.world_size,
        max(_MIN_DECODED_SIDE, 3 * preprocessing.resize),
    )
    data = processes.run_on_main(
        lambda: read_dataset(
            Path(config.data),
            config.val_split,
            config.test_split,
            config.resolved_split_seed,
            progress.on_progress,
            decoded_cache,
            config.allow_leaks,
        )
    )
    decoded_cache.record_file_stamps(entry.path for entry in data.entries)
    return data, decoded_cache


def _resolve_unfreeze(config: FinetuneConfig, adapted: AdaptedModel, default: int) -> str:
    if config.weights == "none":
        return "all"
    return resolve_unfreeze(config.unfreeze, adapted, default)


def _requested_batch_size(config: FinetuneConfig, data: SplitDataset, processes: Processes) -> int:
    """Return the configured batch size, or the default one for `auto` and None."""
    images = len(data.entries_in("train"))
    if config.batch_size is None or config.batch_size == "auto":
        batch_size = max(default_batch_size(images), 2 * processes.world_size)
    else:
        batch_size = int(config.batch_size)
    _check_images_per_process(min(batch_size, images), processes)
    return batch_size


def _resolve_compute_config(config: FinetuneConfig, run_choices: RunChoices) -> ComputeConfig:
    recorded_device = run_choices.recorded.device
    if config.device != "auto" or recorded_device is None:
        return choose_compute_config(config.device, config.precision)
    try:
        return choose_compute_config(recorded_device, config.precision)
    except ConfigError as cause:
        raise choice_unavailable_error(f"--device {recorded_device}", str(cause)) from cause


def _cache_budgets(config: FinetuneConfig, run_choices: RunChoices) -> tuple[int, int]:
    """Return the size limits, bytes, of cached features and of decoded images.

    The first determines the number of views; the second affects only the speed.
    """
    if config.cache_budget is not None:
        return config.cache_budget, config.cache_budget
    free_bytes = free_memory_bytes() // 4
    feature_budget = free_bytes
    if run_choices.recorded.cache_budget is not None:
        feature_budget = run_choices.recorded.cache_budget
    elif run_choices.uses_fixed_rules:
        feature_budget = FIXED_CACHE_BYTES
    return feature_budget, min(free_bytes, feature_budget)


def _resolve_config(
    config: FinetuneConfig, data: SplitDataset, compute_config: ComputeConfig, processes: Processes
) -> FinetuneConfig:
    """Resolve the options that depend on the data folder and the machine."""
    workers = config.workers
    if workers is None:
        cores = available_cores() // processes.local_group.world_size
        images = len(data.entries_in("train", "val"))
        workers = default_workers(images, cores, compute_config.device.type)
    return replace(
        config,
        data=data.folder,
        device="cuda" if compute_config.device.type == "cuda" else "cpu",
        precision=compute_config.precision,
        workers=workers,
    )


def _build_model(
    config: FinetuneConfig, image_size: int, classes: int, weights: PretrainedWeights | None
) -> AdaptedModel:
    torch.manual_seed(config.seed)
    adapted = build_adapted_model(
        config.model, image_size, classes, config.head_width, config.dropout, weights
    )
    take_strides_before_convolutions(adapted.model)
    return adapted


def _resolve_batch_fit(
    config: FinetuneConfig,
    run_choices: RunChoices,
    adapted: AdaptedModel,
    compute_config: ComputeConfig,
    image_size: int,
    images: int,
    default: int,
    unfreeze: str,
    processes: Processes,
) -> BatchSizeResult:
    if run_choices.recorded.batch is not None:
        return run_choices.recorded.batch
    if run_choices.uses_fixed_rules:
        return BatchSizeResult(default, default)
    # The main process decides for all: the GPUs are alike, or the slowest sets the pace anyway.
    phase = plan_phases(config, unfreeze, default)[-1]
    return processes.run_on_main(
        lambda: autotune_batch_size(
            adapted,
            phase,
            config,
            compute_config,
            image_size,
            images,
            default,
            processes.world_size,
        )
    )


def _check_images_per_process(images: int, processes: Processes) -> None:
    if processes.is_distributed and images < 2 * processes.world_size:
        raise ConfigError(
            f"Each process needs at least 2 images per step, but {processes.world_size} processes "
            f"share {images}. Start fewer processes, or increase {{batch_size}}.",
            FinetuneConfig,
        )


def _report_setup(data: SplitDataset, config: FinetuneConfig, progress: TrainingProgress) -> None:
    for warning in data.warnings:
        progress.warn(warning)
    train_images = len(data.entries_in("train"))
    val_images = len(data.entries_in("val"))
    test_images = len(data.entries_in("test"))
    images = f"{train_images} training and {val_images} validation images"
    if test_images:
        images = f"{train_images} training, {val_images} validation and {test_images} test images"
    progress.note(f"{len(data.labels)} classes, {images}.")
    if not val_images:
        progress.warn(
            "Training without validation images: "
            "nothing is known about accuracy on new images. The last epoch is kept."
        )
    if not val_images and (config.patience or config.target_accuracy):
        progress.warn("--patience and --target-accuracy have no effect without validation images.")
    if config.weights == "none":
        progress.note(
            "--weights none: nothing is pretrained, so all layers are trained in one phase at --lr."
        )
