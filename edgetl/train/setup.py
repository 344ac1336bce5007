"""All that can be wrong with what the user gave is found out here; nothing is written before."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from edgetl.core.artifacts.measured_choices import AutoChoices
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import ConfigError
from edgetl.core.paths import RunDirectory
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.hardware.cpu import available_cores
from edgetl.device.hardware.memory import free_memory_bytes, keep_freed_memory
from edgetl.train.common.distributed import SINGLE_PROCESS, Processes
from edgetl.train.common.precision import ComputeConfig, choose_compute_config
from edgetl.train.common.progress import Progress
from edgetl.train.common.run_choices import RunChoices, choice_unavailable_error
from edgetl.train.data.augmentation import Augmentation
from edgetl.train.data.dataset import SplitDataset, read_dataset
from edgetl.train.data.decoded_cache import DecodedImageCache
from edgetl.train.data.folders import find_files
from edgetl.train.data.loader import default_workers
from edgetl.train.engine.batch_size import BatchSizeResult, autotune_batch_size, describe_batch_size
from edgetl.train.engine.phases import Phase, default_batch_size, plan_phases
from edgetl.train.model.factory import AdaptedModel, build_adapted_model
from edgetl.train.model.freezing import resolve_unfreeze
from edgetl.train.model.torchvision_models import get_architecture, preprocessing_for
from edgetl.train.model.weights import PretrainedWeights, read_weights

_MIN_DECODED_SIDE = 768
"""Pixels that training images keep on the shorter side when JPEG files are decoded at a part of their size: the same picture to a grey
level after the resize; with much less, a random crop's edges would round visibly."""


FIXED_CACHE_BYTES = 4 * 2**30
"""For activations with `--deterministic`, whatever memory is free: they lie in files, of which the kernel keeps in memory what fits."""


@dataclass(frozen=True)
class RunSetup:
    """A run that may begin."""

    requested_config: FinetuneConfig
    """As the user gave it."""
    config: FinetuneConfig
    """With everything decided that can be before training."""
    batch_size: int
    batch_fit: BatchSizeResult | None
    """How `--batch-size auto` was decided; None without it."""
    run: RunDirectory
    data: SplitDataset
    preprocessing: Preprocessing
    compute_config: ComputeConfig
    phases: list[Phase]
    augmentation: Augmentation
    decoded_cache: DecodedImageCache
    weights: PretrainedWeights | None
    adapted_model: AdaptedModel
    processes: Processes
    choices: RunChoices


def prepare_run(
    config: FinetuneConfig,
    run: RunDirectory,
    progress: Progress,
    ranks: Processes = SINGLE_PROCESS,
    choices: AutoChoices | None = None,
) -> RunSetup:
    """Read the images and make the network.

    Args:
        choices: what an earlier run or process has decided.

    Raises:
        DataError: the images; see `edgetl.train.data.dataset.read_data`.
        ArchitectureError, WeightsError: the model; see `edgetl.train.model.factory.adapt`.
        ConfigError: a device or precision that is not there, more blocks than the backbone has, more processes than images a step.
    """
    architecture = get_architecture(config.model)
    run_choices = RunChoices(choices, fixed=config.deterministic)
    computing = _resolve_compute_config(config, run_choices)
    if computing.device.type == "cpu":
        keep_freed_memory()
    preprocessing = preprocessing_for(config.model, config.image_size)
    augmentation = Augmentation(config.augment, preprocessing, config.seed, config.augment_file)
    # Before a download of weights: a missing folder is told at once.
    find_files(config.data.expanduser().absolute())
    with ranks.local_group.main_process_first():
        weights = read_weights(config.weights, config.model)
    budget, room = ranks.broadcast(_cache_budget(config, run_choices))
    decoded = DecodedImageCache(
        room // ranks.local_group.world_size, max(_MIN_DECODED_SIDE, 3 * preprocessing.resize)
    )
    data = ranks.run_on_main(
        lambda: read_dataset(
            config.data,
            config.val_split,
            config.resolved_split_seed,
            progress.on_files_checked,
            decoded,
            config.allow_leaks,
        )
    )
    decoded.record_file_stamps(row.path for row in data.entries)
    torch.manual_seed(config.seed)
    adapted = build_adapted_model(
        config.model,
        preprocessing.crop,
        len(data.labels),
        config.head_width,
        config.dropout,
        weights,
    )
    unfreeze = (
        "all"
        if config.weights == "none"
        else resolve_unfreeze(config.unfreeze, adapted, architecture.unfreeze)
    )
    usual = max(default_batch_size(len(data.entries_in("train"))), 2 * ranks.world_size)
    _check_images_per_process(
        min(
            usual if config.batch_size in (None, "auto") else int(config.batch_size),
            len(data.entries_in("train")),
        ),
        ranks,
    )
    _report_setup(data, config, progress)
    batch_fit: BatchSizeResult | None = None
    if config.batch_size == "auto":
        if run_choices.recorded.batch is not None:
            batch_fit = BatchSizeResult.from_json(run_choices.recorded.batch)
        elif run_choices.uses_fixed_rules:
            batch_fit = BatchSizeResult(usual, usual)
        else:
            batch_fit = _fit_batch_size(
                config,
                adapted,
                computing,
                preprocessing.crop,
                len(data.entries_in("train")),
                usual,
                unfreeze,
                ranks,
            )
        progress.note(describe_batch_size(batch_fit, computing.device.type))
    batch_size = batch_fit.batch_size if batch_fit else int(config.batch_size or usual)
    phases = plan_phases(config, unfreeze, batch_size, batch_fit.lr_scale if batch_fit else 1.0)
    images, cores = len(data.entries), available_cores() // ranks.local_group.world_size
    resolved = replace(
        config,
        data=data.folder,
        output=run.path,
        image_size=preprocessing.crop,
        unfreeze=unfreeze,
        batch_size=batch_size,
        device="cuda" if computing.device.type == "cuda" else "cpu",
        precision=computing.precision,
        workers=default_workers(images, cores, computing.device.type)
        if config.workers is None
        else config.workers,
        cache_budget=budget,
    )
    run_choices.record(
        device="cuda" if computing.device.type == "cuda" else "cpu",
        threads=torch.get_num_threads(),
        cache_budget=budget,
        batch=batch_fit.to_json() if batch_fit else None,
    )
    return RunSetup(
        requested_config=config,
        config=resolved,
        batch_size=batch_size,
        batch_fit=batch_fit,
        run=run,
        data=data,
        preprocessing=preprocessing,
        compute_config=computing,
        phases=phases,
        augmentation=augmentation,
        decoded_cache=decoded,
        weights=weights,
        adapted_model=adapted,
        processes=ranks,
        choices=run_choices,
    )


def _resolve_compute_config(config: FinetuneConfig, run_choices: RunChoices) -> ComputeConfig:
    if config.device != "auto" or run_choices.recorded.device is None:
        return choose_compute_config(config.device, config.precision)
    try:
        return choose_compute_config(run_choices.recorded.device, config.precision)
    except ConfigError as cause:
        raise choice_unavailable_error(
            f"--device {run_choices.recorded.device}", str(cause)
        ) from cause


def _cache_budget(config: FinetuneConfig, run_choices: RunChoices) -> tuple[int, int]:
    """Bytes for activations, which decide how many views there are, and for decoded images, which decide nothing but time."""
    if config.cache_budget is not None:
        return config.cache_budget, config.cache_budget
    free = free_memory_bytes() // 4
    if run_choices.recorded.cache_budget is not None:
        return run_choices.recorded.cache_budget, min(free, run_choices.recorded.cache_budget)
    return (
        (FIXED_CACHE_BYTES, min(free, FIXED_CACHE_BYTES))
        if run_choices.uses_fixed_rules
        else (free, free)
    )


def _fit_batch_size(
    config: FinetuneConfig,
    adapted: AdaptedModel,
    computing: ComputeConfig,
    image_size: int,
    images: int,
    usual: int,
    unfreeze: int | str,
    ranks: Processes,
) -> BatchSizeResult:
    # The first process of all decides: the GPUs of a training are alike, or the slowest sets the pace anyway.
    phase = plan_phases(config, unfreeze, usual)[-1]
    return ranks.run_on_main(
        lambda: autotune_batch_size(
            adapted, phase, config, computing, image_size, images, usual, ranks.world_size
        )
    )


def _check_images_per_process(images: int, ranks: Processes) -> None:
    if ranks.is_distributed and images < 2 * ranks.world_size:
        raise ConfigError(
            f"{ranks.world_size} processes divide the {images} images of a step, and each needs two. Start fewer, or raise --batch-size."
        )


def _report_setup(data: SplitDataset, config: FinetuneConfig, progress: Progress) -> None:
    for warning in data.warnings:
        progress.warn(warning)
    train, val = len(data.entries_in("train")), len(data.entries_in("val"))
    progress.note(f"{len(data.labels)} classes, {train} training and {val} validation images.")
    if not val:
        progress.warn(
            "Training without validation images: nothing is known about accuracy on new images. The last epoch is kept."
        )
    if not val and (config.patience or config.target_accuracy):
        progress.warn("--patience and --target-accuracy have no effect without validation images.")
    if config.weights == "none":
        progress.note(
            "--weights none: nothing is pretrained, so everything trains from the start in one phase at --lr."
        )
