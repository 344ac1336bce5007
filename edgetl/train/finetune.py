"""`edgetl finetune`: a folder of images to a run directory."""

from __future__ import annotations

import errno
import time
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial

import torch

from edgetl.core.artifacts.measured_choices import AutoChoices
from edgetl.core.artifacts.run_config import RunConfiguration, read_run_configuration
from edgetl.core.config.finetune import Device, FinetuneConfig
from edgetl.core.errors import ConfigError, DataError, DecodeError, RunError
from edgetl.core.paths import RunDirectory
from edgetl.device.hardware.info import collect_device_info
from edgetl.train.common.distributed import ignore_sigterm, init_distributed, is_peer_failure
from edgetl.train.common.progress import NullProgress, Progress
from edgetl.train.common.run_choices import use_recorded_threads
from edgetl.train.data.loader import ImageDataset, ImageLoader
from edgetl.train.engine.checkpoint import Checkpoint
from edgetl.train.engine.determinism import deterministic_algorithms, report_determinism_cost
from edgetl.train.engine.domain_shift import batch_norm_shift
from edgetl.train.engine.optim import Loss
from edgetl.train.engine.phase_builder import PhaseBuilder, TrainablePhase
from edgetl.train.engine.phases import Phase, resolve_phase
from edgetl.train.engine.trainer import Trainer
from edgetl.train.engine.training_state import check_phases, read_training_checkpoint
from edgetl.train.features.batches import CachedBatches
from edgetl.train.features.cache import RunContext
from edgetl.train.model.factory import AdaptedModel
from edgetl.train.model.freezing import set_trainable
from edgetl.train.output_directory import OutputDirectory, choose_output_directory
from edgetl.train.results import package_versions, write_choices, write_results, write_run_config
from edgetl.train.setup import RunSetup, prepare_run
from edgetl.train.tracking import track_progress


def read_unfinished_run(run: RunDirectory) -> RunConfiguration:
    """What config.json says of a run that has begun and not finished.

    Raises:
        RunError: there is none, or it is broken.
    """
    if not run.config.is_file():
        raise RunError(
            f"{run.path} holds no run to go on with. `edgetl finetune DATA -o {run.path}` begins one."
        )
    configuration = read_run_configuration(run)
    if configuration.requested_config is None:
        raise RunError(
            f"{run.path} was begun by an edgetl that could not resume. Train anew with --force."
        )
    # A checkpoint beside the figures is of a run that was ended before its pictures were drawn.
    if run.metrics.exists() and not run.checkpoint.exists():
        raise RunError(
            f"{run.path} has finished: there is nothing to go on with. `edgetl export {run.path}` is next."
        )
    return configuration


def check_inputs_unchanged(prepared: RunSetup, began: RunConfiguration) -> None:
    """Whether images and weights are those that the run began with.

    Raises:
        DataError, ConfigError: they are not.
    """
    if prepared.data.fingerprint != began.data.fingerprint or prepared.data.labels != list(
        began.classes
    ):
        raise DataError(
            f"The images in {prepared.data.folder} are not those that the run began with. Put them back, or train anew with --force."
        )
    if (prepared.weights.sha256 if prepared.weights else None) != began.weights.sha256:
        raise ConfigError(
            f"The weights {began.weights.source} are not those that the run began with. Put them back, or train anew with --force."
        )


_DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)


def finetune(
    config: FinetuneConfig, progress: Progress | None = None, choices: AutoChoices | None = None
) -> RunDirectory:
    """Adapt a pretrained classifier to a folder of images and write the run directory.

    Nothing is written or removed before data, weights and options have been checked. Where torchrun has started several processes that
    call this, they train one network together; the first writes.

    Args:
        choices: what an earlier run has decided by timing or by free memory; it is taken as it is, and nothing of it is measured.

    Raises:
        DataError: the images; see `edgetl.train.data.dataset.read_data`.
        ArchitectureError, WeightsError: the model; see `edgetl.train.model.factory.adapt`.
        ConfigError: a device or precision that is not there, more blocks than the backbone has, a recorded choice that this machine
            cannot follow.
        RunError: the output exists already, another process trains there, the disk is full, or the loss became infinite.
        KeyboardInterrupt: as it came, with a message that says what was kept.
        SystemExit: one of several processes, and another has told what is wrong.
    """
    progress = progress or NullProgress()
    started = time.perf_counter()
    with (
        init_distributed(config.device) as ranks,
        deterministic_algorithms(config.deterministic),
        use_recorded_threads(choices),
    ):
        run = ranks.run_on_main(
            lambda: choose_output_directory(config.output, config.data, config.model, config.force)
        )
        prepared = prepare_run(config, run, progress, ranks, choices)
        read_s = time.perf_counter() - started
        # Recorded epochs are what the clock made of the budget the first time.
        budget = config.budget_s if choices is None or choices.epochs is None else None
        return _run_training(
            prepared,
            OutputDirectory(run) if ranks.is_main else None,
            progress,
            started,
            read_s,
            None,
            budget,
        )


def resume(path: RunDirectory, progress: Progress | None = None) -> RunDirectory:
    """Go on with a run that was ended, however it was, from its last checkpoint; from the beginning where it has none.

    On a CPU the finished weights are those of a run that was not ended, bit by bit.

    Raises:
        RunError: nothing to go on with, it has finished, another process trains there, or a damaged checkpoint.
        DataError: the images are not those that the run began with.
        as `finetune`.
    """
    progress = progress or NullProgress()
    started = time.perf_counter()
    with init_distributed(_recorded_device(path)) as ranks:
        began = ranks.run_on_main(lambda: read_unfinished_run(path))
        assert began.requested_config is not None
        config, choices = began.requested_config, began.choices
        place_again = OutputDirectory.reopen(path) if ranks.is_main else nullcontext()
        with (
            place_again as place,
            deterministic_algorithms(config.deterministic),
            use_recorded_threads(choices),
        ):
            state = ranks.run_on_main(
                lambda: (
                    read_training_checkpoint(path.checkpoint) if path.checkpoint.exists() else None
                )
            )
            # The machine's free memory is another one now, and what it decided must stay decided.
            config = replace(
                config,
                output=path.path,
                cache_budget=began.config.cache_budget,
                workers=began.config.workers,
            )
            prepared = prepare_run(config, path, progress, ranks, choices)
            _report_resume(prepared, began, state, progress)
            return _run_training(
                prepared,
                place,
                progress,
                started - state.metadata["elapsed"] if state else started,
                0.0,
                state,
                config.budget_s,
            )


def _recorded_device(path: RunDirectory) -> Device:
    # Asked before the processes are joined, which may use no GPU of a run on a CPU; what is wrong with the file is told later.
    try:
        return read_run_configuration(path).config.device
    except RunError:
        return "auto"


def _report_resume(
    prepared: RunSetup, began: RunConfiguration, state: Checkpoint | None, progress: Progress
) -> None:
    check_inputs_unchanged(prepared, began)
    if state is None:
        progress.note("There is no checkpoint yet: the run begins anew.")
    else:
        progress.note(
            f"Going on after {state.metadata['elapsed']:.0f} s, in epoch {len(state.metadata['records']) + 1}."
        )


def _run_training(
    prepared: RunSetup,
    place: OutputDirectory | None,
    progress: Progress,
    started: float,
    read_s: float,
    state: Checkpoint | None,
    budget: float | None,
) -> RunDirectory:
    run, ranks = prepared.run, prepared.processes
    deadline = started + budget if budget else None
    training: Trainer | None = None
    try:
        if state is None and ranks.is_main:
            write_run_config(prepared)
        if ranks.is_main:
            prepared.choices.on_change = partial(write_choices, run)
        done = len(state.metadata["records"]) if state else 0
        with (
            track_progress(prepared.config, run, progress, done)
            if ranks.is_main
            else nullcontext(progress) as told
        ):
            training = _build_trainer(prepared, told, started, deadline)
            training.seconds["reading"] = read_s
            staging = _build_phase_builder(prepared, told, deadline, state)
            last = _train_phases(prepared, training, staging, state)
            write_results(prepared, training, last, staging.report, started)
    except BaseException as cause:
        ignore_sigterm(ranks)
        if place is not None:
            _commit_or_rollback(run, place, training)
        if is_peer_failure(cause):
            raise RunError(
                f"One of the {ranks.world_size} processes has ended, or the job was cancelled. {_resume_hint(run)}"
            ) from cause
        if isinstance(cause, DecodeError):
            raise DataError(f"{cause} Put the file back as it was. {_resume_hint(run)}") from cause
        if isinstance(cause, KeyboardInterrupt):
            raise KeyboardInterrupt(_interrupt_message(run, training)) from None
        if isinstance(cause, OSError) and cause.errno in _DISK_FULL_ERRNOS:
            raise RunError(
                f"The disk of {run.path} is full. Make room; {_resume_hint(run)}"
            ) from cause
        raise
    if place is not None:
        place.commit()
    return run


def _commit_or_rollback(
    run: RunDirectory, place: OutputDirectory, training: Trainer | None
) -> None:
    if training is not None and training.best is not None:
        with suppress(OSError):  # the disk may be what ended it
            training.write_best()
    if run.weights.exists() or run.checkpoint.exists():
        place.commit()
    else:
        place.rollback()


def _resume_hint(run: RunDirectory) -> str:
    if run.checkpoint.exists():
        return f"`edgetl finetune --resume {run.path}` goes on from the last checkpoint."
    return "There is no checkpoint yet: run the same command again."


def estimate_seconds(config: FinetuneConfig, progress: Progress | None = None) -> float:
    """How long `finetune` would take, from steps timed now on the user's images; nothing is trained or written.

    Raises:
        as `finetune` before it trains: what is wrong with data, weights or options is found out here too.
    """
    progress = progress or NullProgress()
    started = time.perf_counter()
    prepared = prepare_run(
        config,
        choose_output_directory(config.output, config.data, config.model, config.force),
        progress,
    )
    read_s = time.perf_counter() - started
    return read_s + _build_phase_builder(prepared, progress, None, None).estimate_seconds()


def _build_trainer(
    prepared: RunSetup, progress: Progress, started: float, deadline: float | None
) -> Trainer:
    config, data = prepared.config, prepared.data
    labels = torch.tensor([data.labels.index(row.label) for row in data.entries_in("train")])
    return Trainer(
        config=config,
        run=prepared.run,
        adapted_model=prepared.adapted_model,
        loss=Loss(config, labels, len(data.labels), prepared.compute_config.device),
        images_per_epoch=len(labels),
        has_validation=bool(data.entries_in("val")),
        progress=progress,
        started_at=started,
        deadline=deadline,
        processes=prepared.processes,
        choices=prepared.choices,
    )


def _build_phase_builder(
    prepared: RunSetup, progress: Progress, deadline: float | None, state: Checkpoint | None
) -> PhaseBuilder:
    config, rows, computing = prepared.config, prepared.data.entries, prepared.compute_config
    prepared.adapted_model.model.to(device=computing.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = ImageDataset(
        rows,
        prepared.data.labels,
        prepared.augmentation,
        prepared.preprocessing,
        prepared.decoded_cache,
    )
    parts = {
        part: [index for index, row in enumerate(rows) if row.split == part]
        for part in ("train", "val")
    }
    facts = {
        "format": 1,
        "model": config.model,
        "weights": prepared.weights.sha256 if prepared.weights else None,
        "preprocessing": prepared.preprocessing.to_json(),
        "augmentation": prepared.augmentation.name,
        "seed": config.seed,
        "device": computing.device_name,
        # What CPUs compute depends on their instructions, and on how many threads a sum is split among.
        "cpu": [collect_device_info().get("cpu"), torch.get_num_threads()]
        if computing.device.type == "cpu"
        else None,
        "deterministic": config.deterministic if computing.device.type == "cuda" else None,
        "versions": package_versions("opencv-python-headless", "onnxruntime", "onnxruntime-gpu"),
        "images": {
            part: [(index, prepared.data.file_hashes[rows[index].path]) for index in indices]
            for part, indices in parts.items()
        },
    }
    loader = ImageLoader(images, config.workers or 0, pin_memory=computing.device.type == "cuda")
    materials = RunContext(
        config=config,
        batch_size=prepared.batch_size,
        adapted_model=prepared.adapted_model,
        loader=loader,
        train_indices=parts["train"],
        val_indices=parts["val"],
        preprocessing=prepared.preprocessing,
        compute_config=computing,
        feature_key=facts,
        cache_budget_bytes=config.cache_budget or 0,
        # What was planned stays planned.
        deadline=deadline if prepared.choices.recorded.epochs is None and state is None else None,
        progress=progress,
        processes=prepared.processes,
        choices=prepared.choices,
    )
    planned = prepared.choices.recorded.epochs
    if state is not None:
        check_phases(state, len(prepared.phases))
    if planned is None:
        return PhaseBuilder(materials, prepared.phases)
    if len(planned) != len(prepared.phases):
        raise ConfigError(
            f"The recorded epochs are of {len(planned)} phases and the run has {len(prepared.phases)}. Train anew."
        )
    return PhaseBuilder(
        materials,
        [
            replace(phase, epochs=count)
            for phase, count in zip(prepared.phases, planned, strict=True)
        ],
    )


def _train_phases(
    prepared: RunSetup, training: Trainer, staging: PhaseBuilder, state: Checkpoint | None
) -> TrainablePhase:
    started = time.perf_counter()
    stages = staging.build_phases()
    if prepared.config.deterministic:
        report_determinism_cost(stages[-1], prepared.adapted_model, training.progress)
    if all(isinstance(stage.batch_source, CachedBatches) for stage in stages):
        prepared.decoded_cache.clear()
    if state is None:
        # What was measured on the way, or was not because it is remembered, has drawn from the generator.
        # Dropout in each of several processes is its own.
        torch.manual_seed(prepared.config.seed + prepared.processes.rank)
    else:
        training.restore(state)
    training.seconds["frozen_blocks"] = (
        training.seconds.get("frozen_blocks", 0.0) + time.perf_counter() - started
    )
    for at, stage in enumerate(stages):
        if at >= training.phase_index and not training.has_reached_target():
            inside = (
                state
                if state is not None and state.metadata["epochs"] and at == state.metadata["stage"]
                else None
            )
            stage = replace(
                stage,
                phase=Phase(**inside.metadata["phase"])
                if inside
                else _resolve_phase_from_training(prepared, training, stage),
            )
            training.run_phase(
                stage,
                stage.phase.epochs + sum(later.phase.epochs for later in stages[at + 1 :]),
                inside,
            )
    return stages[-1]


def _resolve_phase_from_training(
    prepared: RunSetup, training: Trainer, stage: TrainablePhase
) -> Phase:
    config = prepared.config
    if config.budget_s:
        # The number of epochs has been planned from the time; only the rate is open.
        config = replace(config, finetune_epochs=stage.phase.epochs)
    learnt = training.records[-1].train_accuracy if training.records else None
    lr_scale = prepared.batch_fit.lr_scale if prepared.batch_fit else 1.0
    return prepared.processes.broadcast(
        resolve_phase(
            stage.phase,
            config,
            learnt,
            partial(_measure_shift, training.adapted_model, stage),
            lr_scale,
        )
    )


def _measure_shift(adapted: AdaptedModel, stage: TrainablePhase) -> float:
    set_trainable(adapted, stage.phase.unfreeze)
    return batch_norm_shift(adapted.model, stage.forward, stage.batch_source.iter_train_batches(1))


def _interrupt_message(run: RunDirectory, training: Trainer | None) -> str:
    if not run.checkpoint.exists() and not run.weights.exists():
        return "Interrupted before anything was learnt: nothing was kept."
    again = f"`edgetl finetune --resume {run.path}` goes on"
    best = training.best if training else None
    if best is None:
        return f"Interrupted in the first epoch; {again}."
    accuracy = (
        f", validation accuracy {best.val_accuracy:.3f}" if best.val_accuracy is not None else ""
    )
    return (
        f"Interrupted after epoch {len(training.records) if training else 0}; {again}. "
        f"{run.path} holds the best so far (epoch {best.epoch}{accuracy}): `edgetl export {run.path}` takes it as it is."
    )
