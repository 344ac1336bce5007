"""`edgetl finetune`."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgetl.cli import finetune_options as options
from edgetl.cli.console import err, heavy_imports, out
from edgetl.cli.interruption import interrupted_exit_status
from edgetl.core.artifacts.measured_choices import (
    RecordedRun,
    find_changed_choice_inputs,
    read_recorded_run,
)
from edgetl.core.config.finetune import parse_batch_size
from edgetl.core.config.options import parse_duration, parse_size, raise_config_errors
from edgetl.core.config.presets import parse_augment, resolve_config
from edgetl.core.errors import ConfigError
from edgetl.core.paths import RunDirectory

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgetl.train.common.progress import Progress

_NON_CONFIG_PARAMETERS = ("data", "resume", "preset", "config")


def finetune(
    data: options.Data = None,
    output: options.Output = None,
    force: options.Force = False,
    resume: options.Resume = None,
    preset: options.Preset = None,
    config: options.ConfigFile = None,
    model: options.Model = None,
    weights: options.Weights = None,
    image_size: options.ImageSize = None,
    head_width: options.HeadWidth = None,
    dropout: options.Dropout = None,
    epochs: options.Epochs = None,
    lr: options.Lr = None,
    unfreeze: options.Unfreeze = None,
    finetune_epochs: options.FinetuneEpochs = None,
    finetune_lr: options.FinetuneLr = None,
    batch_size: options.BatchSize = None,
    batch_norm: options.BatchNormMode = None,
    schedule: options.ScheduleKind = None,
    warmup: options.Warmup = None,
    lr_decay: options.LrDecay = None,
    weight_decay: options.WeightDecay = None,
    clip_gradient: options.ClipGradient = None,
    label_smoothing: options.LabelSmoothing = None,
    ema: options.Ema = None,
    patience: options.Patience = None,
    target_accuracy: options.TargetAccuracy = None,
    budget: options.Budget = None,
    augment: options.Augmentation = None,
    views: options.Views = None,
    mixup: options.Mixup = None,
    cutmix: options.Cutmix = None,
    class_weights: options.ClassWeighting = None,
    sampling: options.SamplingKind = None,
    val_split: options.ValSplit = None,
    allow_leaks: options.AllowLeaks = None,
    seed: options.Seed = None,
    split_seed: options.SplitSeed = None,
    device: options.DeviceKind = None,
    precision: options.PrecisionKind = None,
    input_device: options.InputDeviceKind = None,
    workers: options.Workers = None,
    cache_budget: options.CacheBudget = None,
    compile: options.Compile = None,
    deterministic: options.Deterministic = None,
    tensorboard: options.TensorBoard = None,
    mlflow: options.MLflow = None,
) -> None:
    """Adapt a pretrained classifier to a folder of images.

    Writes a run directory: the weights of the best epoch, metrics, the split, and plots. `edgetl export RUN` is next.
    """
    # First of all, while the parameters are the only local variables.
    parameters = dict(locals())
    work = _prepare_resume(resume, parameters) if resume else _prepare_new_run(parameters)
    with heavy_imports():
        import edgetl.train.finetune  # noqa: F401
        from edgetl.cli.finetune_progress import open_training_progress
        from edgetl.train.common.distributed import is_main_process
        from edgetl.train.common.progress import NullProgress

    try:
        with (
            open_training_progress(err)
            if is_main_process()
            else nullcontext(NullProgress()) as progress
        ):
            run = work(progress)
    except KeyboardInterrupt as interrupt:
        # Typer would turn it into a bare exit status and lose what it says.
        err.print(
            str(interrupt) or "Interrupted: nothing was kept.",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(interrupted_exit_status()) from None
    if is_main_process():
        _print_summary(run)


def _prepare_new_run(parameters: dict[str, Any]) -> Callable[[Progress], RunDirectory]:
    if (file := parameters["config"]) is not None and file.suffix == ".json":
        return _prepare_rerun(read_recorded_run(file), parameters)
    if parameters["data"] is None:
        raise ConfigError(
            "Give DATA, a folder of images, or --resume RUN to go on with a run that was ended."
        )
    given = {
        name: value
        for name, value in parameters.items()
        if value is not None and name not in _NON_CONFIG_PARAMETERS
    }
    settings = resolve_config(
        parameters["data"], parameters["preset"], parameters["config"], _parse_options(given)
    )

    def work(progress: Progress) -> RunDirectory:
        from edgetl.train.finetune import finetune as begin

        return begin(settings, progress)

    return work


def _prepare_rerun(
    run: RecordedRun, parameters: dict[str, Any]
) -> Callable[[Progress], RunDirectory]:
    """A rerun from a run's config.json: its options and choices, with other options above them."""
    if parameters["preset"] is not None:
        raise ConfigError(f"{run.path} holds every option of its run: leave --preset out.")
    given = _parse_options(
        {
            name: value
            for name, value in parameters.items()
            if value is not None and name not in _NON_CONFIG_PARAMETERS
        }
    )
    if "augment" in given:
        given["augment_file"] = None
    settings = replace(run.config, data=parameters["data"] or run.config.data, **given)
    changed = find_changed_choice_inputs(run.config, settings)

    def work(progress: Progress) -> RunDirectory:
        from edgetl.train.finetune import finetune as begin

        if changed:
            shown = ", ".join("--" + name.removesuffix("_s").replace("_", "-") for name in changed)
            progress.note(
                f"The recorded choices do not hold with another {shown}: they are made anew."
            )
        return begin(settings, progress, None if changed else run.choices)

    return work


def _prepare_resume(run: Path, parameters: dict[str, Any]) -> Callable[[Progress], RunDirectory]:
    others = [
        name
        for name, value in parameters.items()
        if value is not None and value is not False and name != "resume"
    ]
    if others:
        shown = ", ".join(
            "DATA" if name == "data" else "--" + name.replace("_", "-") for name in others
        )
        raise ConfigError(
            f"--resume goes on with the run's own images and options: leave {shown} out."
        )

    def work(progress: Progress) -> RunDirectory:
        from edgetl.train.finetune import resume

        return resume(RunDirectory(run.expanduser().absolute()), progress)

    return work


def _parse_options(given: dict[str, Any]) -> dict[str, Any]:
    """Field name to value, of options as they were typed."""
    parsed: dict[str, Any] = {}
    problems = []
    for name, value in given.items():
        try:
            if name == "augment":
                field, strength_or_file = parse_augment(value)
                parsed[field] = strength_or_file
            elif name == "budget":
                parsed["budget_s"] = parse_duration(value)
            elif name == "batch_size":
                parsed[name] = parse_batch_size(value)
            elif name == "cache_budget":
                parsed[name] = parse_size(value)
            else:
                parsed[name] = value
        except ConfigError as cause:
            problems.append(f"--{name.replace('_', '-')}: {cause}")
    raise_config_errors(problems)
    return parsed


def _print_summary(run: RunDirectory) -> None:
    from edgetl.core.errors import RunError
    from edgetl.core.files import read_json

    metrics = read_json(run.metrics, RunError, "The run's metrics")
    path = relative_to_cwd(run.path)
    out.print(
        f"\n{metrics['model']}, {len(metrics['classes'])} classes, best epoch {metrics['best_epoch']}",
        markup=False,
    )
    out.print(_describe_accuracy(metrics["val"]), style="bold", markup=False, soft_wrap=True)
    out.print(
        f"Time: {metrics['seconds']['total']:.0f} s on {metrics['device']} ({metrics['precision']})",
        markup=False,
    )
    out.print(f"Run: {path}  (plots in {path / 'plots'})", markup=False, soft_wrap=True)
    out.print(f"Next: edgetl export {path}", markup=False, soft_wrap=True)


def _describe_accuracy(val: dict[str, Any] | None) -> str:
    if val is None:
        return "Validation accuracy: unknown, there were no validation images."
    low, high = val["accuracy_ci95"]
    return f"Validation accuracy: {val['accuracy']:.1%} of {val['images']} images (95% interval {low:.1%} to {high:.1%})"


def relative_to_cwd(path: Path) -> Path:
    """Relative to the current folder where it lies inside."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
