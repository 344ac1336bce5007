"""`edgetl finetune`: a folder of images to a run directory."""

from __future__ import annotations

import errno
import time
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial

import torch

from edgetl.core.artifacts.measured_choices import Choices
from edgetl.core.artifacts.run_config import RunConfiguration, read_run_configuration
from edgetl.core.config.finetune import Device, FinetuneConfig
from edgetl.core.errors import ConfigError, DataError, DecodeError, RunError
from edgetl.core.paths import RunDirectory
from edgetl.device.hardware.info import device_facts
from edgetl.train.common.distributed import hear_no_more, joined, lost
from edgetl.train.common.progress import Progress, Silent
from edgetl.train.common.run_choices import recorded_threads
from edgetl.train.data.loader import Images, Loader
from edgetl.train.engine.checkpoint import State
from edgetl.train.engine.determinism import deterministic, tell_cost
from edgetl.train.engine.domain_shift import statistics_shift
from edgetl.train.engine.optim import Loss
from edgetl.train.engine.phase_builder import Stage, Staging
from edgetl.train.engine.phases import Phase, settle
from edgetl.train.engine.trainer import Training
from edgetl.train.engine.training_state import check_phases, read_training_state
from edgetl.train.features.batches import CachedFeed
from edgetl.train.features.cache import Materials
from edgetl.train.model.factory import AdaptedNetwork
from edgetl.train.model.freezing import set_trainable
from edgetl.train.output_directory import Place, choose_output
from edgetl.train.results import versions, write_beginnings, write_choices, write_results
from edgetl.train.setup import Prepared, prepare
from edgetl.train.tracking import tracked


def beginnings(run: RunDirectory) -> RunConfiguration:
    """What config.json says of a run that has begun and not finished.

    Raises:
        RunError: there is none, or it is broken.
    """
    if not run.config.is_file():
        raise RunError(
            f"{run.path} holds no run to go on with. `edgetl finetune DATA -o {run.path}` begins one."
        )
    configuration = read_run_configuration(run)
    if configuration.asked is None:
        raise RunError(
            f"{run.path} was begun by an edgetl that could not resume. Train anew with --force."
        )
    # A checkpoint beside the figures is of a run that was ended before its pictures were drawn.
    if run.metrics.exists() and not run.checkpoint.exists():
        raise RunError(
            f"{run.path} has finished: there is nothing to go on with. `edgetl export {run.path}` is next."
        )
    return configuration


def check_unchanged(prepared: Prepared, began: RunConfiguration) -> None:
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


_FULL = (errno.ENOSPC, errno.EDQUOT)


def finetune(
    config: FinetuneConfig, progress: Progress | None = None, choices: Choices | None = None
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
    progress = progress or Silent()
    started = time.perf_counter()
    with (
        joined(config.device) as ranks,
        deterministic(config.deterministic),
        recorded_threads(choices),
    ):
        run = ranks.first_makes(
            lambda: choose_output(config.output, config.data, config.model, config.force)
        )
        prepared = prepare(config, run, progress, ranks, choices)
        read_s = time.perf_counter() - started
        # Recorded epochs are what the clock made of the budget the first time.
        budget = config.budget_s if choices is None or choices.epochs is None else None
        return _run(
            prepared, Place(run) if ranks.first else None, progress, started, read_s, None, budget
        )


def resume(path: RunDirectory, progress: Progress | None = None) -> RunDirectory:
    """Go on with a run that was ended, however it was, from its last checkpoint; from the beginning where it has none.

    On a CPU the finished weights are those of a run that was not ended, bit by bit.

    Raises:
        RunError: nothing to go on with, it has finished, another process trains there, or a damaged checkpoint.
        DataError: the images are not those that the run began with.
        as `finetune`.
    """
    progress = progress or Silent()
    started = time.perf_counter()
    with joined(_device_of(path)) as ranks:
        began = ranks.first_makes(lambda: beginnings(path))
        assert began.asked is not None
        config, choices = began.asked, began.choices
        place_again = Place.again(path) if ranks.first else nullcontext()
        with place_again as place, deterministic(config.deterministic), recorded_threads(choices):
            state = ranks.first_makes(
                lambda: read_training_state(path.checkpoint) if path.checkpoint.exists() else None
            )
            # The machine's free memory is another one now, and what it decided must stay decided.
            config = replace(
                config,
                output=path.path,
                cache_budget=began.config.cache_budget,
                workers=began.config.workers,
            )
            prepared = prepare(config, path, progress, ranks, choices)
            _tell_where(prepared, began, state, progress)
            return _run(
                prepared,
                place,
                progress,
                started - state.facts["elapsed"] if state else started,
                0.0,
                state,
                config.budget_s,
            )


def _device_of(path: RunDirectory) -> Device:
    # Asked before the processes are joined, which may use no GPU of a run on a CPU; what is wrong with the file is told later.
    try:
        return read_run_configuration(path).config.device
    except RunError:
        return "auto"


def _tell_where(
    prepared: Prepared, began: RunConfiguration, state: State | None, progress: Progress
) -> None:
    check_unchanged(prepared, began)
    if state is None:
        progress.note("There is no checkpoint yet: the run begins anew.")
    else:
        progress.note(
            f"Going on after {state.facts['elapsed']:.0f} s, in epoch {len(state.facts['records']) + 1}."
        )


def _run(
    prepared: Prepared,
    place: Place | None,
    progress: Progress,
    started: float,
    read_s: float,
    state: State | None,
    budget: float | None,
) -> RunDirectory:
    run, ranks = prepared.run, prepared.ranks
    deadline = started + budget if budget else None
    training: Training | None = None
    try:
        if state is None and ranks.first:
            write_beginnings(prepared)
        if ranks.first:
            prepared.choices.write = partial(write_choices, run)
        done = len(state.facts["records"]) if state else 0
        with (
            tracked(prepared.config, run, progress, done)
            if ranks.first
            else nullcontext(progress) as told
        ):
            training = _training(prepared, told, started, deadline)
            training.seconds["reading"] = read_s
            staging = _staging(prepared, told, deadline, state)
            last = _train(prepared, training, staging, state)
            write_results(prepared, training, last, staging.report, started)
    except BaseException as cause:
        hear_no_more(ranks)
        if place is not None:
            _keep_what_there_is(run, place, training)
        if lost(cause):
            raise RunError(
                f"One of the {ranks.world} processes has ended, or the job was cancelled. {_next_step(run)}"
            ) from cause
        if isinstance(cause, DecodeError):
            raise DataError(f"{cause} Put the file back as it was. {_next_step(run)}") from cause
        if isinstance(cause, KeyboardInterrupt):
            raise KeyboardInterrupt(_interrupted(run, training)) from None
        if isinstance(cause, OSError) and cause.errno in _FULL:
            raise RunError(
                f"The disk of {run.path} is full. Make room; {_next_step(run)}"
            ) from cause
        raise
    if place is not None:
        place.keep()
    return run


def _keep_what_there_is(run: RunDirectory, place: Place, training: Training | None) -> None:
    if training is not None and training.best is not None:
        with suppress(OSError):  # the disk may be what ended it
            training.write_best()
    if run.weights.exists() or run.checkpoint.exists():
        place.keep()
    else:
        place.give_back()


def _next_step(run: RunDirectory) -> str:
    if run.checkpoint.exists():
        return f"`edgetl finetune --resume {run.path}` goes on from the last checkpoint."
    return "There is no checkpoint yet: run the same command again."


def expected_seconds(config: FinetuneConfig, progress: Progress | None = None) -> float:
    """How long `finetune` would take, from steps timed now on the user's images; nothing is trained or written.

    Raises:
        as `finetune` before it trains: what is wrong with data, weights or options is found out here too.
    """
    progress = progress or Silent()
    started = time.perf_counter()
    prepared = prepare(
        config, choose_output(config.output, config.data, config.model, config.force), progress
    )
    read_s = time.perf_counter() - started
    return read_s + _staging(prepared, progress, None, None).expected_seconds()


def _training(
    prepared: Prepared, progress: Progress, started: float, deadline: float | None
) -> Training:
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
        ranks=prepared.ranks,
        choices=prepared.choices,
    )


def _staging(
    prepared: Prepared, progress: Progress, deadline: float | None, state: State | None
) -> Staging:
    config, rows, computing = prepared.config, prepared.data.rows, prepared.computing
    prepared.adapted.network.to(device=computing.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = Images(
        rows, prepared.data.labels, prepared.augmentation, prepared.preprocessing, prepared.decoded
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
        "device": computing.name,
        # What CPUs compute depends on their instructions, and on how many threads a sum is split among.
        "cpu": [device_facts().get("cpu"), torch.get_num_threads()]
        if computing.device.type == "cpu"
        else None,
        "deterministic": config.deterministic if computing.device.type == "cuda" else None,
        "versions": versions("opencv-python-headless", "onnxruntime", "onnxruntime-gpu"),
        "images": {
            part: [(index, prepared.data.hashes[rows[index].path]) for index in indices]
            for part, indices in parts.items()
        },
    }
    loader = Loader(images, config.workers or 0, pin_memory=computing.device.type == "cuda")
    materials = Materials(
        config=config,
        batch_size=prepared.batch_size,
        adapted=prepared.adapted,
        loader=loader,
        train=parts["train"],
        val=parts["val"],
        preprocessing=prepared.preprocessing,
        computing=computing,
        facts=facts,
        cache_budget=config.cache_budget or 0,
        # What was planned stays planned.
        deadline=deadline if prepared.choices.recorded.epochs is None and state is None else None,
        progress=progress,
        ranks=prepared.ranks,
        choices=prepared.choices,
    )
    planned = prepared.choices.recorded.epochs
    if state is not None:
        check_phases(state, len(prepared.phases))
    if planned is None:
        return Staging(materials, prepared.phases)
    if len(planned) != len(prepared.phases):
        raise ConfigError(
            f"The recorded epochs are of {len(planned)} phases and the run has {len(prepared.phases)}. Train anew."
        )
    return Staging(
        materials,
        [
            replace(phase, epochs=count)
            for phase, count in zip(prepared.phases, planned, strict=True)
        ],
    )


def _train(prepared: Prepared, training: Training, staging: Staging, state: State | None) -> Stage:
    started = time.perf_counter()
    stages = staging.stages()
    if prepared.config.deterministic:
        tell_cost(stages[-1], prepared.adapted, training.progress)
    if all(isinstance(stage.feed, CachedFeed) for stage in stages):
        prepared.decoded.release()
    if state is None:
        # What was measured on the way, or was not because it is remembered, has drawn from the generator.
        # Dropout in each of several processes is its own.
        torch.manual_seed(prepared.config.seed + prepared.ranks.rank)
    else:
        training.restore(state)
    training.seconds["frozen_blocks"] = (
        training.seconds.get("frozen_blocks", 0.0) + time.perf_counter() - started
    )
    for at, stage in enumerate(stages):
        if at >= training.stage and not training.reached_target():
            inside = (
                state
                if state is not None and state.facts["epochs"] and at == state.facts["stage"]
                else None
            )
            stage = replace(
                stage,
                phase=Phase(**inside.facts["phase"])
                if inside
                else _settled(prepared, training, stage),
            )
            training.run_stage(
                stage,
                stage.phase.epochs + sum(later.phase.epochs for later in stages[at + 1 :]),
                inside,
            )
    return stages[-1]


def _settled(prepared: Prepared, training: Training, stage: Stage) -> Phase:
    config = prepared.config
    if config.budget_s:
        # The number of epochs has been planned from the time; only the rate is open.
        config = replace(config, finetune_epochs=stage.phase.epochs)
    learnt = training.records[-1].train_accuracy if training.records else None
    lr_scale = prepared.batch_fit.lr_scale if prepared.batch_fit else 1.0
    return prepared.ranks.agree(
        settle(stage.phase, config, learnt, partial(_shift, training.adapted, stage), lr_scale)
    )


def _shift(adapted: AdaptedNetwork, stage: Stage) -> float:
    set_trainable(adapted, stage.phase.unfreeze)
    return statistics_shift(adapted.network, stage.forward, stage.feed.training(1))


def _interrupted(run: RunDirectory, training: Training | None) -> str:
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
