"""`edgetl bench`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetl.cli.config_options import config_options
from edgetl.cli.exit_codes import ExitCode
from edgetl.cli.progress import measure_and_show
from edgetl.core.config.bench import BenchConfig

if TYPE_CHECKING:
    from edgetl.core.artifacts.bench import BenchResult


@config_options(BenchConfig)
def bench(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|BUNDLE|MODEL.onnx",
            help="Run directory, bundle or ONNX file.",
            show_default=False,
        ),
    ],
    options: dict[str, Any],
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="TOML or JSON file of options; those given here override it.",
        ),
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="USER@DEVICE",
            help="Measure on this host over OpenSSH; repeat it for several hosts in parallel. The "
            "temporary installation is removed afterwards.",
        ),
    ] = None,
    wheels: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="With --host: folder of wheels to install from.",
            show_default="the host's package index",
            hidden=True,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object.")
    ] = False,
) -> None:
    """Benchmark a bundle against PyTorch on this device.

    Each variant is checked on the bundle's golden images first; only variants that reproduce
    PyTorch's predictions are timed. Each round runs in fresh processes, and speed-ups are reported
    with 95% intervals. The verdict is `inconclusive` or `noisy` if the measurements are.

    Exit code: 0 on success, also if comparisons are inconclusive; 1, nothing was measured or a
    variant failed its check; 4, a limit is exceeded; 5, the data do not decide for a limit.
    """
    from edgetl.core.config.options import build_config
    from edgetl.core.errors import ConfigError

    if config is not None:
        from edgetl.core.config.presets import read_config_file

        options = {**read_config_file(config, BenchConfig), **options}
    settings = build_config(BenchConfig, target=target, **options)
    if host:
        from edgetl.cli.bench_hosts import run_hosts

        run_hosts(settings, host, wheels, as_json)
    elif wheels is not None:
        raise ConfigError("--wheels can only be used with --host.")
    else:
        _measure(settings, as_json)


def _measure(config: BenchConfig, as_json: bool) -> None:
    from edgetl.cli.bench_tables import show_bench_result
    from edgetl.core.errors import BenchError
    from edgetl.device.bench.runner import bench as measure

    result = measure_and_show(partial(measure, config), show_bench_result, as_json)
    if result.failed_rows:
        reasons = [f"{name}: {reason}" for name, reason in result.list_refusals()]
        raise BenchError(
            "The check on the golden images failed, so these were not timed: "
            f"{'; '.join(reasons)}. Export the bundle again, or choose others with "
            "--variant, --runtime or --provider."
        )
    _exit_by_limits(result)


def _exit_by_limits(result: BenchResult) -> None:
    outcomes = {check.outcome for check in result.limit_checks}
    if "broken" in outcomes:
        raise typer.Exit(ExitCode.FAILED_CHECK)
    if "undecided" in outcomes:
        raise typer.Exit(ExitCode.UNDECIDED)
