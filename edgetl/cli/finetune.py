"""`edgetl finetune`."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetl.cli.config_options import config_options
from edgetl.cli.console import err, heavy_imports, out
from edgetl.cli.interruption import interrupted_exit_status
from edgetl.core.artifacts.measured_choices import find_changed_choice_inputs
from edgetl.core.artifacts.run_config import RecordedRun, read_recorded_run
from edgetl.core.artifacts.run_metrics import HeldOutMetrics, read_metrics
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.config.options import get_flags
from edgetl.core.config.presets import resolve_config
from edgetl.core.errors import ConfigError
from edgetl.core.paths import RunDirectory
from edgetl.core.progress import NullProgress, TrainingProgress

if TYPE_CHECKING:
    from collections.abc import Callable


@config_options(FinetuneConfig)
def finetune(
    options: dict[str, Any],
    data: Annotated[
        Path | None,
        typer.Argument(
            help="Folder with train/, val/ and test/ folders of classes, or one folder of classes.",
            metavar="DATA",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="RUN",
            help="Resume an interrupted run from its last checkpoint. Cannot be combined with "
            "other options.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="TOML file of options, which override the preset; `edgetl presets NAME` prints "
            "one. Or RUN/config.json, to repeat a run with its options and its timing-based "
            "choices.",
        ),
    ] = None,
) -> None:
    """Fine-tune a pretrained classifier on a folder of images.

    Writes a run directory with the weights of the best epoch, metrics, the split and plots. To
    export the model afterwards, use `edgetl export RUN`.
    """
    if resume is not None:
        work = _prepare_resume(resume, data, config, options)
    elif config is not None and config.suffix == ".json":
        work = _prepare_rerun(read_recorded_run(config), data, options)
    else:
        work = _prepare_new_run(data, config, options)
    with heavy_imports():
        import edgetl.train.finetune  # noqa: F401
        from edgetl.cli.finetune_progress import open_training_progress
        from edgetl.train.common.distributed import is_main_process

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


def _prepare_new_run(
    data: Path | None, config: Path | None, options: dict[str, Any]
) -> Callable[[TrainingProgress], RunDirectory]:
    if data is None:
        raise ConfigError(
            "DATA is missing. Give a folder of images, or resume a run with --resume RUN."
        )
    preset = options.pop("preset", None)
    settings = resolve_config(data, preset, config, options)

    def work(progress: TrainingProgress) -> RunDirectory:
        from edgetl.train.finetune import finetune as start_run

        return start_run(settings, progress)

    return work


def _prepare_rerun(
    run: RecordedRun, data: Path | None, options: dict[str, Any]
) -> Callable[[TrainingProgress], RunDirectory]:
    """Repeat a run from its config.json: options override its config, recorded choices are reused.

    The choices are made again if an option they depend on has changed.
    """
    if "preset" in options:
        raise ConfigError(
            f"--preset cannot be combined with {run.path}, which sets every option. "
            "Remove --preset."
        )
    if "augment" in options:
        options["augment_file"] = None
    settings = replace(run.config, data=data or run.config.data, **options)
    changed_fields = find_changed_choice_inputs(run.config, settings)

    def work(progress: TrainingProgress) -> RunDirectory:
        from edgetl.train.finetune import finetune as start_run

        if not changed_fields:
            return start_run(settings, progress, run.choices)
        flags = get_flags(FinetuneConfig)
        names = ", ".join(flags[name] for name in changed_fields)
        progress.note(f"Ignoring the recorded choices, which depend on {names}.")
        return start_run(settings, progress, None)

    return work


def _prepare_resume(
    run: Path, data: Path | None, config: Path | None, options: dict[str, Any]
) -> Callable[[TrainingProgress], RunDirectory]:
    flags = get_flags(FinetuneConfig)
    conflicts = [
        *(["DATA"] if data else []),
        *(["--config"] if config else []),
        *(flags["augment" if name == "augment_file" else name] for name in options),
    ]
    if conflicts:
        raise ConfigError(
            "--resume uses the images and options of the run and cannot be combined with others. "
            f"Remove {', '.join(conflicts)}."
        )

    def work(progress: TrainingProgress) -> RunDirectory:
        from edgetl.train.finetune import resume

        return resume(run.expanduser().absolute(), progress)

    return work


def _print_summary(run: RunDirectory) -> None:
    metrics = read_metrics(run)
    path = relative_to_cwd(run.path)
    out.print(
        f"\n{metrics.model}, {len(metrics.classes)} classes, best epoch {metrics.best_epoch}",
        markup=False,
    )
    val, test = metrics.val, metrics.test
    if val is None:
        out.print("Validation accuracy: not measured, no validation images.", style="bold")
    else:
        _print_accuracy("Validation", val)
    if test is not None:
        _print_accuracy("Test", test)
    out.print(
        f"Time: {metrics.seconds['total']:.0f} s on {metrics.device} ({metrics.precision})",
        markup=False,
    )
    out.print(f"Run: {path}  (plots in {path / 'plots'})", markup=False, soft_wrap=True)
    out.print(f"Next: edgetl export {path}", markup=False, soft_wrap=True)


def _print_accuracy(split: str, metrics: HeldOutMetrics) -> None:
    low, high = metrics.interval
    out.print(
        f"{split} accuracy: {metrics.accuracy:.1%} of {metrics.images} images "
        f"(95% interval {low:.1%} to {high:.1%})",
        style="bold",
        markup=False,
        soft_wrap=True,
    )


def relative_to_cwd(path: Path) -> Path:
    """Return the path relative to the current folder, or unchanged if it is outside."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
