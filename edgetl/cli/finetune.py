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
    """Fine-tune a pretrained classifier on a folder of images.

    Writes a run directory with the weights of the best epoch, metrics, the split and plots. To
    export the model afterwards, use `edgetl export RUN`.
    """
    # Must come first, while the parameters are the only local variables.
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
        # Typer would exit without printing the message.
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
            "DATA is missing. Give a folder of images, or resume a run with --resume RUN."
        )
    settings = resolve_config(
        parameters["data"],
        parameters["preset"],
        parameters["config"],
        _parse_options(_select_config_options(parameters)),
    )

    def work(progress: Progress) -> RunDirectory:
        from edgetl.train.finetune import finetune as start_run

        return start_run(settings, progress)

    return work


def _prepare_rerun(
    run: RecordedRun, parameters: dict[str, Any]
) -> Callable[[Progress], RunDirectory]:
    """Repeat a run from its config.json: options override its config, recorded choices are reused.

    The choices are made again if an option they depend on has changed.
    """
    if parameters["preset"] is not None:
        raise ConfigError(
            f"--preset cannot be combined with {run.path}, which sets every option. "
            "Remove --preset."
        )
    overrides = _parse_options(_select_config_options(parameters))
    if "augment" in overrides:
        overrides["augment_file"] = None
    settings = replace(run.config, data=parameters["data"] or run.config.data, **overrides)
    changed_fields = find_changed_choice_inputs(run.config, settings)

    def work(progress: Progress) -> RunDirectory:
        from edgetl.train.finetune import finetune as start_run

        if not changed_fields:
            return start_run(settings, progress, run.choices)
        names = ", ".join(
            "--" + name.removesuffix("_s").replace("_", "-") for name in changed_fields
        )
        progress.note(f"Ignoring the recorded choices, which depend on {names}.")
        return start_run(settings, progress, None)

    return work


def _prepare_resume(run: Path, parameters: dict[str, Any]) -> Callable[[Progress], RunDirectory]:
    conflicts = [
        "DATA" if name == "data" else "--" + name.replace("_", "-")
        for name, value in parameters.items()
        if value is not None and value is not False and name != "resume"
    ]
    if conflicts:
        raise ConfigError(
            "--resume uses the images and options of the run and cannot be combined with others. "
            f"Remove {', '.join(conflicts)}."
        )

    def work(progress: Progress) -> RunDirectory:
        from edgetl.train.finetune import resume

        return resume(RunDirectory(run.expanduser().absolute()), progress)

    return work


def _select_config_options(parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in parameters.items()
        if value is not None and name not in _NON_CONFIG_PARAMETERS
    }


def _parse_options(typed_options: dict[str, Any]) -> dict[str, Any]:
    """Parse options as typed on the command line into values of config fields."""
    parsed: dict[str, Any] = {}
    problems = []
    for name, value in typed_options.items():
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
        f"\n{metrics['model']}, {len(metrics['classes'])} classes, "
        f"best epoch {metrics['best_epoch']}",
        markup=False,
    )
    out.print(_describe_accuracy(metrics["val"]), style="bold", markup=False, soft_wrap=True)
    out.print(
        f"Time: {metrics['seconds']['total']:.0f} s "
        f"on {metrics['device']} ({metrics['precision']})",
        markup=False,
    )
    out.print(f"Run: {path}  (plots in {path / 'plots'})", markup=False, soft_wrap=True)
    out.print(f"Next: edgetl export {path}", markup=False, soft_wrap=True)


def _describe_accuracy(val: dict[str, Any] | None) -> str:
    if val is None:
        return "Validation accuracy: not measured, no validation images."
    low, high = val["accuracy_ci95"]
    return (
        f"Validation accuracy: {val['accuracy']:.1%} of {val['images']} images "
        f"(95% interval {low:.1%} to {high:.1%})"
    )


def relative_to_cwd(path: Path) -> Path:
    """Return the path relative to the current folder, or unchanged if it is outside."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
