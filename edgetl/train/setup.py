"""All that can be wrong with what the user gave is found out here; nothing is written before."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from edgetl.core.artifacts.measured_choices import Choices
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import ConfigError
from edgetl.core.paths import RunDirectory
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.hardware.cpu import available_cores
from edgetl.device.hardware.memory import free_memory_bytes, keep_freed_memory
from edgetl.train.common.distributed import ALONE, Ranks
from edgetl.train.common.precision import Computing, choose_computing
from edgetl.train.common.progress import Progress
from edgetl.train.common.run_choices import RunChoices, not_available
from edgetl.train.data.augmentation import Augmentation
from edgetl.train.data.dataset import DataSet, read_data
from edgetl.train.data.decoded_cache import DecodedImages
from edgetl.train.data.folders import find_files
from edgetl.train.data.loader import default_workers
from edgetl.train.engine.batch_size import BatchFit, describe_fit, fit_batch_size
from edgetl.train.engine.phases import Phase, plan_phases, usual_batch_size
from edgetl.train.model.factory import AdaptedNetwork, adapt
from edgetl.train.model.freezing import resolve_unfreeze
from edgetl.train.model.torchvision_models import known_architecture, preprocessing_for
from edgetl.train.model.weights import PretrainedWeights, read_weights

_LEAST_SIDE = 768
"""Pixels that training images keep on the shorter side when JPEG files are decoded at a part of their size: the same picture to a grey
level after the resize; with much less, a random crop's edges would round visibly."""


FIXED_CACHE_BYTES = 4 * 2**30
"""For activations with `--deterministic`, whatever memory is free: they lie in files, of which the kernel keeps in memory what fits."""


@dataclass(frozen=True)
class Prepared:
    """A run that may begin."""

    asked: FinetuneConfig
    """As the user gave it."""
    config: FinetuneConfig
    """With everything decided that can be before training."""
    batch_size: int
    batch_fit: BatchFit | None
    """How `--batch-size auto` was decided; None without it."""
    run: RunDirectory
    data: DataSet
    preprocessing: Preprocessing
    computing: Computing
    phases: list[Phase]
    augmentation: Augmentation
    decoded: DecodedImages
    weights: PretrainedWeights | None
    adapted: AdaptedNetwork
    ranks: Ranks
    choices: RunChoices


def prepare(
    config: FinetuneConfig,
    run: RunDirectory,
    progress: Progress,
    ranks: Ranks = ALONE,
    choices: Choices | None = None,
) -> Prepared:
    """Read the images and make the network.

    Args:
        choices: what an earlier run or process has decided.

    Raises:
        DataError: the images; see `edgetl.train.data.dataset.read_data`.
        ArchitectureError, WeightsError: the model; see `edgetl.train.model.factory.adapt`.
        ConfigError: a device or precision that is not there, more blocks than the backbone has, more processes than images a step.
    """
    architecture = known_architecture(config.model)
    run_choices = RunChoices(choices, fixed=config.deterministic)
    computing = _computing(config, run_choices)
    if computing.device.type == "cpu":
        keep_freed_memory()
    preprocessing = preprocessing_for(config.model, config.image_size)
    augmentation = Augmentation(config.augment, preprocessing, config.seed, config.augment_file)
    # Before a download of weights: a missing folder is told at once.
    find_files(config.data.expanduser().absolute())
    with ranks.local.first_ahead():
        weights = read_weights(config.weights, config.model)
    budget, room = ranks.agree(_cache_budget(config, run_choices))
    decoded = DecodedImages(room // ranks.local.world, max(_LEAST_SIDE, 3 * preprocessing.resize))
    data = ranks.first_makes(
        lambda: read_data(
            config.data,
            config.val_split,
            config.resolved_split_seed,
            progress.files,
            decoded,
            config.allow_leaks,
        )
    )
    decoded.expect(row.path for row in data.rows)
    torch.manual_seed(config.seed)
    adapted = adapt(
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
    usual = max(usual_batch_size(len(data.part("train"))), 2 * ranks.world)
    _check_share(
        min(
            usual if config.batch_size in (None, "auto") else int(config.batch_size),
            len(data.part("train")),
        ),
        ranks,
    )
    _tell(data, config, progress)
    batch_fit: BatchFit | None = None
    if config.batch_size == "auto":
        if run_choices.recorded.batch is not None:
            batch_fit = BatchFit.from_json(run_choices.recorded.batch)
        elif run_choices.fixed:
            batch_fit = BatchFit(usual, usual)
        else:
            batch_fit = _fit(
                config,
                adapted,
                computing,
                preprocessing.crop,
                len(data.part("train")),
                usual,
                unfreeze,
                ranks,
            )
        progress.note(describe_fit(batch_fit, computing.device.type))
    batch_size = batch_fit.batch_size if batch_fit else int(config.batch_size or usual)
    phases = plan_phases(config, unfreeze, batch_size, batch_fit.lr_scale if batch_fit else 1.0)
    images, cores = len(data.rows), available_cores() // ranks.local.world
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
    return Prepared(
        asked=config,
        config=resolved,
        batch_size=batch_size,
        batch_fit=batch_fit,
        run=run,
        data=data,
        preprocessing=preprocessing,
        computing=computing,
        phases=phases,
        augmentation=augmentation,
        decoded=decoded,
        weights=weights,
        adapted=adapted,
        ranks=ranks,
        choices=run_choices,
    )


def _computing(config: FinetuneConfig, run_choices: RunChoices) -> Computing:
    if config.device != "auto" or run_choices.recorded.device is None:
        return choose_computing(config.device, config.precision)
    try:
        return choose_computing(run_choices.recorded.device, config.precision)
    except ConfigError as cause:
        raise not_available(f"--device {run_choices.recorded.device}", str(cause)) from cause


def _cache_budget(config: FinetuneConfig, run_choices: RunChoices) -> tuple[int, int]:
    """Bytes for activations, which decide how many views there are, and for decoded images, which decide nothing but time."""
    if config.cache_budget is not None:
        return config.cache_budget, config.cache_budget
    free = free_memory_bytes() // 4
    if run_choices.recorded.cache_budget is not None:
        return run_choices.recorded.cache_budget, min(free, run_choices.recorded.cache_budget)
    return (FIXED_CACHE_BYTES, min(free, FIXED_CACHE_BYTES)) if run_choices.fixed else (free, free)


def _fit(
    config: FinetuneConfig,
    adapted: AdaptedNetwork,
    computing: Computing,
    image_size: int,
    images: int,
    usual: int,
    unfreeze: int | str,
    ranks: Ranks,
) -> BatchFit:
    # The first process of all decides: the GPUs of a training are alike, or the slowest sets the pace anyway.
    phase = plan_phases(config, unfreeze, usual)[-1]
    return ranks.first_makes(
        lambda: fit_batch_size(
            adapted, phase, config, computing, image_size, images, usual, ranks.world
        )
    )


def _check_share(images: int, ranks: Ranks) -> None:
    if ranks.many and images < 2 * ranks.world:
        raise ConfigError(
            f"{ranks.world} processes divide the {images} images of a step, and each needs two. Start fewer, or raise --batch-size."
        )


def _tell(data: DataSet, config: FinetuneConfig, progress: Progress) -> None:
    for warning in data.warnings:
        progress.warn(warning)
    train, val = len(data.part("train")), len(data.part("val"))
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
