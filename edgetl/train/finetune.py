"""`edgetl finetune`: a folder of images to a run directory."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial

import torch

from edgetl.core.files import write_json
from edgetl.core.finetuning import FinetuneConfig
from edgetl.core.layout import RunDirectory
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.allocator import keep_freed_memory
from edgetl.device.cores import available_cores
from edgetl.device.facts import peak_memory_bytes
from edgetl.device.memory import free_memory_bytes
from edgetl.train.augmentation import Augmentation
from edgetl.train.computing import Computing, choose_computing
from edgetl.train.dataset import DataSet, read_data
from edgetl.train.decoded import DecodedImages
from edgetl.train.evaluation import evaluate
from edgetl.train.familiarity import statistics_shift
from edgetl.train.feeding import CachedFeed
from edgetl.train.filling import Materials
from edgetl.train.folders import find_files
from edgetl.train.freezing import resolve_unfreeze, set_trainable
from edgetl.train.loading import Images, Loader, default_workers
from edgetl.train.metrics import train_metrics, val_metrics
from edgetl.train.models import AdaptedNetwork, adapt
from edgetl.train.networks import known_architecture, preprocessing_for
from edgetl.train.optimising import Loss
from edgetl.train.output import Place, choose_output
from edgetl.train.phases import Phase, plan_phases, settle, usual_batch_size
from edgetl.train.plots import draw_plots
from edgetl.train.predictions import write_predictions
from edgetl.train.progress import Progress, Silent
from edgetl.train.recipe import Training
from edgetl.train.splits import write_rejected, write_split
from edgetl.train.staging import Stage, Staging
from edgetl.train.versions import versions
from edgetl.train.weights import PretrainedWeights, read_weights

_LEAST_SIDE = 768
"""Pixels that training images keep on the shorter side when JPEG files are decoded at a part of their size: the same picture to a grey
level after the resize; with much less, a random crop's edges would round visibly."""


@dataclass(frozen=True)
class _Prepared:
    # Everything that can be wrong with what the user gave has been found out; nothing has been written.
    config: FinetuneConfig
    run: RunDirectory
    data: DataSet
    preprocessing: Preprocessing
    computing: Computing
    phases: list[Phase]
    augmentation: Augmentation
    decoded: DecodedImages
    weights: PretrainedWeights | None
    adapted: AdaptedNetwork


def finetune(config: FinetuneConfig, progress: Progress | None = None) -> RunDirectory:
    """Adapt a pretrained classifier to a folder of images and write the run directory.

    Nothing is written or removed before data, weights and options have been checked.

    Raises:
        DataError: the images; see `edgetl.train.dataset.read_data`.
        ArchitectureError, WeightsError: the model; see `edgetl.train.models.adapt`.
        ConfigError: a device or precision that is not there, more blocks than the backbone has.
        RunError: the output exists already, or the loss became infinite.
        KeyboardInterrupt: as it came, with a message that says what was kept.
    """
    progress = progress or Silent()
    started = time.perf_counter()
    deadline = started + config.budget_s if config.budget_s else None
    prepared = _prepare(config, progress)
    read_s = time.perf_counter() - started
    place = Place(prepared.run)
    training: Training | None = None
    try:
        _write_beginnings(prepared)
        training = _training(prepared, progress, started, deadline)
        training.seconds["reading"] = read_s
        staging = _staging(prepared, progress, deadline)
        last = _train(prepared, training, staging)
        _finish(prepared, training, last, staging, started)
    except BaseException as cause:
        if training is None or training.best is None:
            place.give_back()
        else:
            training.write_best()
            place.keep()
        if isinstance(cause, KeyboardInterrupt):
            raise KeyboardInterrupt(_interrupted(prepared.run, training)) from None
        raise
    place.keep()
    return prepared.run


def expected_seconds(config: FinetuneConfig, progress: Progress | None = None) -> float:
    """How long `finetune` would take, from steps timed now on the user's images; nothing is trained or written.

    Raises:
        as `finetune` before it trains: what is wrong with data, weights or options is found out here too.
    """
    started = time.perf_counter()
    prepared = _prepare(config, progress or Silent())
    read_s = time.perf_counter() - started
    return read_s + _staging(prepared, progress or Silent(), None).expected_seconds()


def _prepare(config: FinetuneConfig, progress: Progress) -> _Prepared:
    architecture = known_architecture(config.model)
    run = choose_output(config.output, config.data, config.model, config.force)
    computing = choose_computing(config.device, config.precision)
    if computing.device.type == "cpu":
        keep_freed_memory()
    preprocessing = preprocessing_for(config.model, config.image_size)
    augmentation = Augmentation(config.augment, preprocessing, config.seed, config.augment_file)
    # Before a download of weights: a missing folder is told at once.
    find_files(config.data.expanduser().absolute())
    weights = read_weights(config.weights, config.model)
    budget = free_memory_bytes() // 4 if config.cache_budget is None else config.cache_budget
    decoded = DecodedImages(budget, max(_LEAST_SIDE, 3 * preprocessing.resize))
    data = read_data(config.data, config.val_split, config.resolved_split_seed, progress.files, decoded)
    torch.manual_seed(config.seed)
    adapted = adapt(config.model, preprocessing.crop, len(data.labels), config.head_width, config.dropout, weights)
    unfreeze = "all" if config.weights == "none" else resolve_unfreeze(config.unfreeze, adapted, architecture.unfreeze)
    batch_size = config.batch_size or usual_batch_size(len(data.part("train")))
    phases = plan_phases(config, unfreeze, batch_size)
    _tell(data, config, progress)
    images = len(data.rows)
    resolved = replace(
        config,
        data=data.folder,
        output=run.path,
        image_size=preprocessing.crop,
        unfreeze=unfreeze,
        batch_size=batch_size,
        device="cuda" if computing.device.type == "cuda" else "cpu",
        precision=computing.precision,
        workers=default_workers(images, available_cores(), computing.device.type) if config.workers is None else config.workers,
        cache_budget=budget,
    )
    return _Prepared(resolved, run, data, preprocessing, computing, phases, augmentation, decoded, weights, adapted)


def _tell(data: DataSet, config: FinetuneConfig, progress: Progress) -> None:
    for warning in data.warnings:
        progress.warn(warning)
    train, val = len(data.part("train")), len(data.part("val"))
    progress.note(f"{len(data.labels)} classes, {train} training and {val} validation images.")
    if not val:
        progress.warn("Training without validation images: nothing is known about accuracy on new images. The last epoch is kept.")
    if not val and (config.patience or config.target_accuracy):
        progress.warn("--patience and --target-accuracy have no effect without validation images.")
    if config.weights == "none":
        progress.note("--weights none: nothing is pretrained, so everything trains from the start in one phase at --lr.")


def _write_beginnings(prepared: _Prepared) -> None:
    source = prepared.weights.source if prepared.weights else "none"
    write_json(
        prepared.run.config,
        {
            "config": prepared.config.to_json(),
            "classes": prepared.data.labels,
            "preprocessing": prepared.preprocessing.to_json(),
            "versions": versions(),
            "data": prepared.data.to_json(),
            "weights": {"source": source, "sha256": prepared.weights.sha256 if prepared.weights else None},
        },
    )
    write_split(prepared.run, prepared.data.folder, prepared.data.rows)
    write_rejected(prepared.run, prepared.data.folder, prepared.data.rejected)


def _training(prepared: _Prepared, progress: Progress, started: float, deadline: float | None) -> Training:
    config, data = prepared.config, prepared.data
    labels = torch.tensor([data.labels.index(row.label) for row in data.part("train")])
    return Training(
        config=config,
        run=prepared.run,
        adapted=prepared.adapted,
        loss=Loss(config, labels, len(data.labels), prepared.computing.device),
        images=len(labels),
        validated=bool(data.part("val")),
        progress=progress,
        started=started,
        deadline=deadline,
    )


def _staging(prepared: _Prepared, progress: Progress, deadline: float | None) -> Staging:
    config, rows, computing = prepared.config, prepared.data.rows, prepared.computing
    prepared.adapted.network.to(device=computing.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = Images(rows, prepared.data.labels, prepared.augmentation, prepared.preprocessing, prepared.decoded)
    parts = {part: [index for index, row in enumerate(rows) if row.split == part] for part in ("train", "val")}
    facts = {
        "format": 1,
        "model": config.model,
        "weights": prepared.weights.sha256 if prepared.weights else None,
        "preprocessing": prepared.preprocessing.to_json(),
        "augmentation": prepared.augmentation.name,
        "seed": config.seed,
        "device": computing.name,
        "versions": versions("opencv-python-headless", "onnxruntime", "onnxruntime-gpu"),
        "images": {part: [(index, prepared.data.hashes[rows[index].path]) for index in indices] for part, indices in parts.items()},
    }
    loader = Loader(images, config.workers or 0, pin_memory=computing.device.type == "cuda")
    materials = Materials(
        config=config,
        batch_size=config.batch_size or 1,
        adapted=prepared.adapted,
        loader=loader,
        train=parts["train"],
        val=parts["val"],
        preprocessing=prepared.preprocessing,
        computing=computing,
        facts=facts,
        cache_budget=config.cache_budget or 0,
        deadline=deadline,
        progress=progress,
    )
    return Staging(materials, prepared.phases)


def _train(prepared: _Prepared, training: Training, staging: Staging) -> Stage:
    started = time.perf_counter()
    stages = staging.stages()
    if all(isinstance(stage.feed, CachedFeed) for stage in stages):
        prepared.decoded.release()
    training.seconds["frozen_blocks"] = time.perf_counter() - started
    for at, stage in enumerate(stages):
        if training.best is None or not training.reached_target():
            config = prepared.config
            if config.budget_s:
                # The number of epochs has been planned from the time; only the rate is open.
                config = replace(config, finetune_epochs=stage.phase.epochs)
            learnt = training.records[-1].train_accuracy if training.records else None
            stage = replace(stage, phase=settle(stage.phase, config, learnt, partial(_shift, training.adapted, stage)))
            training.run_stage(stage, stage.phase.epochs + sum(later.phase.epochs for later in stages[at + 1 :]))
    return stages[-1]


def _shift(adapted: AdaptedNetwork, stage: Stage) -> float:
    set_trainable(adapted, stage.phase.unfreeze)
    return statistics_shift(adapted.network, stage.forward, stage.feed.training(1))


def _finish(prepared: _Prepared, training: Training, last: Stage, staging: Staging, started: float) -> None:
    evaluating = time.perf_counter()
    network = training.adapted.network.eval()
    train = evaluate(last.forward, last.feed.plain())
    val = training.evaluate(last)
    training.seconds["evaluation"] = time.perf_counter() - evaluating
    assert training.best is not None
    if val is not None:
        write_predictions(prepared.run, prepared.data.folder, prepared.data.part("val"), val, prepared.data.labels)
    write_json(
        prepared.run.metrics,
        {
            "model": prepared.config.model,
            "classes": prepared.data.labels,
            "train": train_metrics(train),
            "val": val_metrics(val, prepared.data.labels),
            "seconds": {"total": time.perf_counter() - started, **training.seconds},
            "parameters": {"total": sum(parameter.numel() for parameter in network.parameters()), "trainable": training.trainable},
            "device": prepared.computing.name,
            "precision": last.computing.precision,
            "weights": {
                "source": prepared.weights.source if prepared.weights else "none",
                "sha256": prepared.weights.sha256 if prepared.weights else None,
            },
            "best_epoch": training.best.epoch,
            "ended": training.ended,
            "frozen_blocks": staging.report,
            "peak_memory_bytes": peak_memory_bytes(),
            "peak_gpu_memory_bytes": prepared.computing.peak_gpu_memory_bytes(),
        },
    )
    # Pictures come last: nothing that can go wrong with a picture may cost the figures.
    draw_plots(prepared.run, training.records, training.best, val, prepared.data.part("val"), prepared.data.labels)


def _interrupted(run: RunDirectory, training: Training | None) -> str:
    if training is None or training.best is None:
        return "Interrupted before the first epoch ended: nothing was kept."
    best = training.best
    accuracy = f", validation accuracy {best.val_accuracy:.3f}" if best.val_accuracy is not None else ""
    return (
        f"Interrupted after epoch {len(training.records)}. {run.path} holds the best so far (epoch {best.epoch}{accuracy}): "
        f"`edgetl export {run.path}` takes it as it is; finetune with --force trains anew."
    )
