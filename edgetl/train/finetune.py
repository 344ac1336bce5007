"""`edgetl finetune`: from a folder of images to a run directory."""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from edgetl.core.artifacts.measured_choices import AutoChoices
from edgetl.core.artifacts.run_config import RunConfiguration, read_run_configuration
from edgetl.core.artifacts.split import SplitEntry
from edgetl.core.config.finetune import Device, FinetuneConfig
from edgetl.core.errors import ConfigError, DataError, DecodeError, RunError
from edgetl.core.paths import RunDirectory, StrPath
from edgetl.core.progress import NullProgress, TrainingProgress
from edgetl.device.hardware.info import collect_device_info
from edgetl.train.common.distributed import (
    Processes,
    ignore_sigterm,
    init_distributed,
    is_peer_failure,
)
from edgetl.train.common.run_choices import use_recorded_threads
from edgetl.train.data.loader import ImageDataset, ImageLoader
from edgetl.train.engine.checkpoint import checkpoint_errors
from edgetl.train.engine.determinism import deterministic_algorithms, report_determinism_cost
from edgetl.train.engine.optim import Loss
from edgetl.train.engine.phase_builder import PhaseBuilder
from edgetl.train.engine.phase_loop import TrainContext
from edgetl.train.engine.phases import TrainablePhase
from edgetl.train.engine.trainer import Trainer
from edgetl.train.engine.training_state import TrainerState, read_training_checkpoint
from edgetl.train.features.batches import CachedBatches
from edgetl.train.features.cache import RunContext
from edgetl.train.model.model_code import restore_code
from edgetl.train.output_directory import OutputDirectory, choose_output_directory
from edgetl.train.results import package_versions, write_choices, write_results, write_run_config
from edgetl.train.setup import RunSetup, prepare_run
from edgetl.train.tracking import Tracker, open_trackers

_DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)


def finetune(
    config: FinetuneConfig,
    progress: TrainingProgress | None = None,
    choices: AutoChoices | None = None,
) -> RunDirectory:
    """Fine-tune a pretrained classifier on a folder of images and write the run directory.

    Data, weights and options are checked before anything is written or removed. If torchrun has
    started several processes that call this function, they train one model together and the main
    process writes.

    Args:
        config: options of the run.
        progress: receiver of progress reports.
        choices: choices recorded by an earlier run, to reuse without measuring again.

    Raises:
        DataError: a problem with the images, see `edgetl.train.data.dataset.read_dataset`.
        ArchitectureError, WeightsError: a problem with the model, see
            `edgetl.train.model.factory.build_adapted_model`.
        ConfigError: the device or precision is not available, the backbone has fewer blocks, or
            this machine does not support a recorded choice.
        RunError: the output already exists, another process trains there, the disk is full, or the
            loss is not finite.
        KeyboardInterrupt: interrupted; the message says what was saved.
        SystemExit: another of several processes has reported the error.
    """
    start = time.perf_counter()
    with (
        init_distributed(config.device) as processes,
        deterministic_algorithms(config.deterministic),
        use_recorded_threads(choices),
    ):
        progress = _select_progress(progress, processes)
        run = processes.run_on_main(
            lambda: choose_output_directory(config.output, config.data, config.model, config.force)
        )
        setup = prepare_run(config, run, progress, processes, choices)
        reading_s = time.perf_counter() - start
        # Recorded numbers of epochs already reflect the time budget.
        budget_s = config.budget_s if choices is None or choices.epochs is None else None
        output = OutputDirectory(run) if processes.is_main else None
        deadline = start + budget_s if budget_s else None
        return _run_training(setup, output, progress, start, deadline, reading_s)


def resume(run: StrPath, progress: TrainingProgress | None = None) -> RunDirectory:
    """Resume a run from its last checkpoint, or from the start if it has none.

    On a CPU the final weights are bit-identical to those of an uninterrupted run.

    Args:
        run: the run directory.
        progress: receiver of progress reports.

    Raises:
        RunError: there is no run to resume, it has finished, another process trains there, or the
            checkpoint is damaged.
        DataError: the images have changed since the run started.
        ConfigError: the weights have changed since the run started.

    All other errors of `finetune` are raised as well.
    """
    start = time.perf_counter()
    directory = RunDirectory(run)
    with init_distributed(_recorded_device(directory)) as processes:
        progress = _select_progress(progress, processes)
        recorded = processes.run_on_main(lambda: read_unfinished_run(directory))
        assert recorded.requested_config is not None
        config = recorded.requested_config
        choices = recorded.choices
        if recorded.code is not None:
            restore_code(recorded.code)
        reopened = OutputDirectory.reopen(directory) if processes.is_main else nullcontext()
        with (
            reopened as output,
            deterministic_algorithms(config.deterministic),
            use_recorded_threads(choices),
        ):
            state = processes.run_on_main(lambda: _read_checkpoint(directory))
            # The free memory may differ now, but what was derived from it must not change; neither
            # must the interpolation, which was bilinear for all models before there was a choice.
            config = replace(
                config,
                output=directory.path,
                interpolation=recorded.preprocessing.interpolation,
                cache_budget=recorded.config.cache_budget,
                workers=recorded.config.workers,
            )
            setup = prepare_run(config, directory, progress, processes, choices)
            check_inputs_unchanged(setup, recorded)
            if state is None:
                progress.note("No checkpoint was saved yet: the run starts again.")
            else:
                start -= state.values.elapsed_s
                progress.note(
                    f"Resuming after {state.values.elapsed_s:.0f} s, "
                    f"in epoch {len(state.values.records) + 1}."
                )
            deadline = start + config.budget_s if config.budget_s else None
            return _run_training(setup, output, progress, start, deadline, state=state)


def estimate_seconds(config: FinetuneConfig, progress: TrainingProgress | None = None) -> float:
    """Estimate the duration of `finetune` in seconds by timing steps on the user's images.

    Nothing is trained or written.

    Raises:
        EdgetlError: a problem with data, weights or options, as in `finetune`.
    """
    progress = progress or TrainingProgress()
    start = time.perf_counter()
    run = choose_output_directory(config.output, config.data, config.model, config.force)
    setup = prepare_run(config, run, progress)
    reading_s = time.perf_counter() - start
    return reading_s + _build_phase_builder(setup, progress, None).estimate_seconds()


def _run_training(
    setup: RunSetup,
    output: OutputDirectory | None,
    progress: TrainingProgress,
    start: float,
    deadline: float | None,
    reading_s: float = 0.0,
    state: TrainerState | None = None,
) -> RunDirectory:
    """Train and write the run directory; on an error keep what a run can be resumed from.

    Args:
        setup: the run.
        output: the directory to write; None in other processes than the main one.
        progress: receiver of progress reports.
        start: start of the run, on the clock of time.perf_counter.
        deadline: end of the time budget, on the same clock.
        reading_s: time spent on reading the images.
        state: state of the checkpoint to resume from.
    """
    run, processes = setup.run, setup.processes
    trainer: Trainer | None = None
    try:
        if processes.is_main:
            if state is None:
                write_run_config(setup)
            setup.choices.on_change = partial(write_choices, run)
        with _open_trackers(setup, progress, state) as trackers:
            trainer = _build_trainer(setup, progress, trackers, start, deadline)
            trainer.add_seconds("reading", reading_s)
            # A resumed run keeps the plan made for its budget.
            builder = _build_phase_builder(setup, progress, None if state else deadline)
            phases = _prepare_phases(setup, builder, trainer, state)
            trainer.fit(phases)
            write_results(setup, trainer, phases[-1], builder.report, start)
    except BaseException as cause:
        ignore_sigterm(processes)
        if output is not None:
            _commit_or_rollback(run, output, trainer)
        error = _explain_error(cause, setup, trainer)
        if error is None:
            raise
        raise error from cause
    if output is not None:
        output.commit()
    return run


def _open_trackers(
    setup: RunSetup, progress: TrainingProgress, state: TrainerState | None
) -> AbstractContextManager[Sequence[Tracker]]:
    if not setup.processes.is_main:
        return nullcontext(())
    finished_epochs = len(state.values.records) if state else 0
    return open_trackers(setup.config, setup.run, progress, finished_epochs)


def _build_trainer(
    setup: RunSetup,
    progress: TrainingProgress,
    trackers: Sequence[Tracker],
    start: float,
    deadline: float | None,
) -> Trainer:
    config, data = setup.config, setup.data
    labels = torch.tensor([data.labels.index(entry.label) for entry in data.entries_in("train")])
    context = TrainContext(
        config=config,
        adapted_model=setup.adapted_model,
        loss=Loss(config, labels, len(data.labels), setup.compute_config.device),
        images_per_epoch=len(labels),
        progress=progress,
        processes=setup.processes,
        choices=setup.choices,
        started_at=start,
    )
    return Trainer(
        context,
        setup.run,
        has_validation=bool(data.entries_in("val")),
        deadline=deadline,
        lr_scale=setup.batch_fit.lr_scale if setup.batch_fit else 1.0,
        trackers=trackers,
    )


def _prepare_phases(
    setup: RunSetup, builder: PhaseBuilder, trainer: Trainer, state: TrainerState | None
) -> list[TrainablePhase]:
    """Compute cached features and return the phases; load the state of a checkpoint."""
    start = time.perf_counter()
    if state is not None:
        with checkpoint_errors(setup.run.checkpoint):
            state.check_phases(len(setup.phases))
    phases = builder.build_phases()
    if setup.config.deterministic:
        report_determinism_cost(phases[-1], setup.adapted_model, trainer.context.progress)
    if all(isinstance(phase.batch_source, CachedBatches) for phase in phases):
        setup.decoded_cache.clear()
    if state is None:
        # Seeded again, because measurements use the generator and cached ones do not. Each process
        # gets its own seed for dropout.
        torch.manual_seed(setup.config.seed + setup.processes.rank)
    else:
        trainer.load_state_dict(state)
    trainer.add_seconds("frozen_blocks", time.perf_counter() - start)
    return phases


def _build_phase_builder(
    setup: RunSetup, progress: TrainingProgress, deadline: float | None
) -> PhaseBuilder:
    config = setup.config
    # Test images stay out. Neither do they shift the indices, which seed the augmentation.
    entries = setup.data.entries_in("train", "val")
    device = setup.compute_config.device
    model = setup.adapted_model.model
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = ImageDataset(
        entries,
        setup.data.labels,
        setup.augmentation,
        setup.preprocessing,
        setup.decoded_cache,
    )
    indices = {
        split: [index for index, entry in enumerate(entries) if entry.split == split]
        for split in ("train", "val")
    }
    recorded_epochs = setup.choices.recorded.epochs
    context = RunContext(
        config=config,
        batch_size=setup.batch_size,
        adapted_model=setup.adapted_model,
        loader=ImageLoader(images, config.workers or 0, pin_memory=device.type == "cuda"),
        train_indices=indices["train"],
        val_indices=indices["val"],
        preprocessing=setup.preprocessing,
        compute_config=setup.compute_config,
        feature_key=_feature_key(setup, entries, indices),
        cache_budget_bytes=config.cache_budget or 0,
        deadline=deadline if recorded_epochs is None else None,
        progress=progress,
        processes=setup.processes,
        choices=setup.choices,
    )
    if recorded_epochs is None:
        return PhaseBuilder(context, setup.phases)
    if len(recorded_epochs) != len(setup.phases):
        raise ConfigError(
            f"The recorded epochs are for {len(recorded_epochs)} phases, "
            f"but the run has {len(setup.phases)}. Start a new run."
        )
    phases = [
        replace(phase, epochs=epochs)
        for phase, epochs in zip(setup.phases, recorded_epochs, strict=True)
    ]
    return PhaseBuilder(context, phases)


def _feature_key(
    setup: RunSetup, entries: Sequence[SplitEntry], indices: dict[str, list[int]]
) -> dict[str, Any]:
    """Return the facts that cached features depend on, besides the views."""
    config = setup.config
    compute_config = setup.compute_config
    on_cpu = compute_config.device.type == "cpu"
    on_gpu = compute_config.device.type == "cuda"
    return {
        "format": 1,
        "model": config.model,
        "weights": setup.weights.sha256 if setup.weights else None,
        **({} if setup.code is None else {"code": setup.code.files}),
        "preprocessing": setup.preprocessing.to_json(),
        "augmentation": setup.augmentation.name,
        "seed": config.seed,
        "device": compute_config.device_name,
        # Results on a CPU depend on its instructions and on the number of threads that share a sum.
        "cpu": [collect_device_info().cpu, torch.get_num_threads()] if on_cpu else None,
        "deterministic": config.deterministic if on_gpu else None,
        "versions": package_versions("opencv-python-headless", "onnxruntime", "onnxruntime-gpu"),
        "images": {
            split: [(index, setup.data.file_hashes[entries[index].path]) for index in split_indices]
            for split, split_indices in indices.items()
        },
    }


def _explain_error(
    cause: BaseException, setup: RunSetup, trainer: Trainer | None
) -> BaseException | None:
    """Return the error with what was kept and the next step; None for errors that are clear."""
    run = setup.run
    if is_peer_failure(cause):
        return RunError(
            f"One of the {setup.processes.world_size} processes has ended, or the job was "
            f"cancelled. {_resume_hint(run)}"
        )
    if isinstance(cause, DecodeError):
        return DataError(f"{cause} Restore the file. {_resume_hint(run)}")
    if isinstance(cause, KeyboardInterrupt):
        return KeyboardInterrupt(_interrupt_message(run, trainer))
    if isinstance(cause, OSError) and cause.errno in _DISK_FULL_ERRNOS:
        return RunError(f"The disk of {run.path} is full. Free some space. {_resume_hint(run)}")
    return None


def _commit_or_rollback(
    run: RunDirectory, output: OutputDirectory, trainer: Trainer | None
) -> None:
    if trainer is not None and trainer.best is not None:
        with suppress(OSError):  # a full disk may be the reason why training ended
            trainer.write_best()
    if run.weights.exists() or run.checkpoint.exists():
        output.commit()
    else:
        output.rollback()


def _resume_hint(run: RunDirectory) -> str:
    if run.checkpoint.exists():
        return f"Resume from the last checkpoint: `edgetl finetune --resume {run.path}`."
    return "No checkpoint was saved yet: run the same command again."


def _interrupt_message(run: RunDirectory, trainer: Trainer | None) -> str:
    if not run.checkpoint.exists() and not run.weights.exists():
        return "Interrupted before the first checkpoint: nothing was kept."
    resume_command = f"Resume: `edgetl finetune --resume {run.path}`."
    best = trainer.best if trainer else None
    if trainer is None or best is None:
        return f"Interrupted in the first epoch. {resume_command}"
    accuracy = ""
    if best.val_accuracy is not None:
        accuracy = f", validation accuracy {best.val_accuracy:.3f}"
    return (
        f"Interrupted after epoch {len(trainer.records)}. {resume_command} "
        f"{run.path} has the best weights so far (epoch {best.epoch}{accuracy}). "
        f"Export them: `edgetl export {run.path}`."
    )


def _select_progress(progress: TrainingProgress | None, processes: Processes) -> TrainingProgress:
    """Return the progress of this process: only the main process reports."""
    if not processes.is_main:
        return NullProgress()
    return progress or TrainingProgress()


def _recorded_device(run: RunDirectory) -> Device:
    # Read before the processes are joined, because a run on a CPU must not touch a GPU. Errors in
    # the file are reported later.
    try:
        return read_run_configuration(run).config.device
    except RunError:
        return "auto"


def read_unfinished_run(run: RunDirectory) -> RunConfiguration:
    """Read config.json of a run that has started and not finished.

    Raises:
        RunError: there is no such run, or the file is damaged.
    """
    if not run.config.is_file():
        raise RunError(
            f"No run to resume in {run.path}. Start one: `edgetl finetune DATA -o {run.path}`."
        )
    configuration = read_run_configuration(run)
    if configuration.requested_config is None:
        raise RunError(
            f"{run.path} was written by a version of edgetl without --resume. "
            "Start a new run with {force}.",
            FinetuneConfig,
        )
    # A checkpoint next to metrics.json belongs to a run that ended before drawing its plots.
    if run.metrics.exists() and not run.checkpoint.exists():
        raise RunError(
            f"{run.path} has finished, so there is nothing to resume. "
            f"Next: `edgetl export {run.path}`."
        )
    return configuration


def check_inputs_unchanged(setup: RunSetup, recorded: RunConfiguration) -> None:
    """Check that images and weights are those that the run started with.

    Raises:
        DataError: the images have changed.
        ConfigError: the weights have changed.
    """
    if setup.data.fingerprint != recorded.data.fingerprint or setup.data.labels != list(
        recorded.classes
    ):
        raise DataError(
            f"The images in {setup.data.folder} have changed since the run started. "
            "Restore them, or start a new run with {force}.",
            FinetuneConfig,
        )
    if (setup.weights.sha256 if setup.weights else None) != recorded.weights.sha256:
        raise ConfigError(
            f"The weights {recorded.weights.source} have changed since the run started. "
            "Restore them, or start a new run with {force}.",
            FinetuneConfig,
        )


def _read_checkpoint(run: RunDirectory) -> TrainerState | None:
    return read_training_checkpoint(run.checkpoint) if run.checkpoint.exists() else None
