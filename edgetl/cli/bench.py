"""`edgetl bench`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import typer

from edgetl.cli import bench_options as options
from edgetl.cli.exit_codes import ExitCode
from edgetl.cli.progress import measure_and_show

if TYPE_CHECKING:
    from edgetl.core.artifacts.bench import BenchResult
    from edgetl.core.config.bench import BenchConfig


def bench(
    target: options.Target,
    scope: options.Scope = None,
    batch: options.Batch = None,
    threads: options.Threads = None,
    provider: options.Provider = None,
    variant: options.Variant = None,
    session: options.Session = None,
    pytorch: options.PyTorch = None,
    rate: options.Rate = None,
    rounds: options.Rounds = 8,
    sustained: options.Sustained = None,
    profile: options.Profile = False,
    inputs: options.Inputs = None,
    baseline: options.Baseline = None,
    any_model: options.AnyModel = False,
    max_regression: options.MaxRegression = None,
    max_p99: options.MaxP99 = None,
    min_speedup: options.MinSpeedup = None,
    host: options.Host = None,
    wheels: options.Wheels = None,
    output: options.Output = None,
    force: options.Force = False,
    as_json: options.AsJson = False,
) -> None:
    """Benchmark a bundle against PyTorch on this device.

    Each variant is checked on the bundle's golden images first; only variants that reproduce
    PyTorch's predictions are timed. Each round runs in fresh processes, and speed-ups are reported
    with 95% intervals. The verdict is `inconclusive` or `noisy` if the measurements are.

    Exit code: 0 on success, also if comparisons are inconclusive; 1, nothing was measured or a
    variant failed its check; 4, a limit is exceeded; 5, the data do not decide for a limit.
    """
    from edgetl.core.config.bench import BenchConfig, Limits
    from edgetl.core.config.parsers import (
        parse_duration,
        parse_milliseconds,
        parse_numbers,
        parse_share,
        split_list,
    )
    from edgetl.core.errors import ConfigError

    torch_modes = split_list(pytorch or ["eager"])
    variants = split_list(variant or [])
    config = BenchConfig(
        target=target,
        scopes=split_list(scope or ["model,file"]),  # type: ignore[arg-type]
        batches=parse_numbers("--batch", batch or ["1"], int),
        threads=parse_numbers("--threads", threads or [], int),
        providers=split_list(provider or ["cpu"]),
        variants=() if variants == ("all",) else variants,
        session_modes=split_list(session or ["default"]),  # type: ignore[arg-type]
        torch_modes=() if torch_modes == ("none",) else torch_modes,  # type: ignore[arg-type]
        rates=parse_numbers("--rate", rate or [], float),
        rounds=rounds,
        sustained_s=parse_duration(sustained) if sustained else 0.0,
        profile=profile,
        inputs=inputs,
        baseline=baseline,
        any_model=any_model,
        limits=Limits(
            None if max_regression is None else parse_share(max_regression),
            None if max_p99 is None else parse_milliseconds(max_p99),
            min_speedup,
        ),
        output=output,
        force=force,
    )
    if host:
        from edgetl.cli.bench_hosts import run_hosts

        run_hosts(config, host, wheels, as_json)
    elif wheels is not None:
        raise ConfigError("--wheels can only be used with --host.")
    else:
        _measure(config, as_json)


def _measure(config: BenchConfig, as_json: bool) -> None:
    from edgetl.cli.bench_tables import show_bench_result
    from edgetl.core.errors import BenchError
    from edgetl.device.bench.runner import bench as measure

    result = measure_and_show(partial(measure, config), show_bench_result, as_json)
    if result.failed_rows:
        reasons = {f"{row.runtime} {row.variant}: {row.gate.reason}" for row in result.failed_rows}
        raise BenchError(
            f"The check on the golden images failed, so nothing was timed: "
            f"{'; '.join(sorted(reasons))}. Export the bundle again, or try another --provider."
        )
    _exit_by_limits(result)


def _exit_by_limits(result: BenchResult) -> None:
    outcomes: set[Any] = {check.outcome for check in result.limit_checks}
    if "broken" in outcomes:
        raise typer.Exit(ExitCode.FAILED_CHECK)
    if "undecided" in outcomes:
        raise typer.Exit(ExitCode.UNDECIDED)
