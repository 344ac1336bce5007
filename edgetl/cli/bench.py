"""`edgetl bench`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgetl.cli.bench_options import (
    AnyModel,
    AsJson,
    Baseline,
    Batch,
    BenchOptions,
    Candidates,
    Classes,
    Data,
    Force,
    Host,
    ImageSize,
    Inputs,
    LatencyBudget,
    Loadgen,
    LoadgenMode,
    MaxP99,
    MaxRegression,
    MinAccuracy,
    MinDuration,
    MinSpeedup,
    Output,
    Profile,
    Provider,
    PyTorch,
    Rate,
    Rounds,
    Scope,
    Session,
    Sustained,
    Targets,
    Threads,
    Variant,
    Wheels,
)
from edgetl.cli.exit_codes import ExitCode
from edgetl.cli.progress import measure_and_show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgetl.core.artifacts.bench import BenchResult
    from edgetl.core.config.bench import BenchConfig

_DEFAULT_ROUNDS = 8
_DEFAULT_CLASSES = 10


def bench(
    targets: Targets = None,
    scope: Scope = None,
    batch: Batch = None,
    threads: Threads = None,
    provider: Provider = None,
    variant: Variant = None,
    session: Session = None,
    pytorch: PyTorch = None,
    rate: Rate = None,
    rounds: Rounds = _DEFAULT_ROUNDS,
    sustained: Sustained = None,
    profile: Profile = False,
    inputs: Inputs = None,
    baseline: Baseline = None,
    any_model: AnyModel = False,
    max_regression: MaxRegression = None,
    max_p99: MaxP99 = None,
    min_speedup: MinSpeedup = None,
    candidates: Candidates = None,
    classes: Classes = _DEFAULT_CLASSES,
    image_size: ImageSize = None,
    latency_budget: LatencyBudget = None,
    host: Host = None,
    wheels: Wheels = None,
    loadgen: Loadgen = None,
    loadgen_mode: LoadgenMode = None,
    data: Data = None,
    min_duration: MinDuration = None,
    min_accuracy: MinAccuracy = None,
    output: Output = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Benchmark a bundle against PyTorch on this device.

    Each variant is checked on the bundle's golden images first; only variants that reproduce
    PyTorch's predictions are timed. Each round runs in fresh processes, and speed-ups are reported
    with 95% intervals. The verdict is `inconclusive` or `noisy` if the measurements are.

    Exit code: 0 on success, also if comparisons are inconclusive; 1, nothing was measured or a
    variant failed its check; 4, a limit is exceeded; 5, the data do not decide for a limit.
    """
    options = BenchOptions(**locals())
    if options.loadgen is not None:
        _run_loadgen(options, options.loadgen)
        return
    _reject_loadgen_options(options)
    if options.candidates or _names_architectures(options.targets or []):
        _run_candidates(options)
        return
    config = _build_config(options)
    if options.host:
        from edgetl.cli.bench_hosts import run_hosts

        run_hosts(config, options.host, options.wheels, options.as_json)
        return
    if options.wheels is not None:
        from edgetl.core.errors import ConfigError

        raise ConfigError("--wheels can only be used with --host.")
    _measure(config, options.as_json)


def _run_loadgen(options: BenchOptions, scenario: str) -> None:
    from edgetl.cli.loadgen import run_loadgen
    from edgetl.core.config.parsers import parse_numbers, split_list

    uses_pytorch = options.pytorch is not None and split_list(options.pytorch) != ("none",)
    unsupported_options = {
        "--session": options.session,
        "--pytorch": uses_pytorch,
        "--rate": options.rate,
        "--rounds": options.rounds != _DEFAULT_ROUNDS,
        "--sustained": options.sustained,
        "--profile": options.profile,
        "--inputs": options.inputs,
        "--baseline": options.baseline,
        "--any-model": options.any_model,
        "--max-regression": options.max_regression,
        "--max-p99": options.max_p99,
        "--min-speedup": options.min_speedup,
        "--candidates": options.candidates,
        "--classes": options.classes != _DEFAULT_CLASSES,
        "--image-size": options.image_size,
        "--latency-budget": options.latency_budget,
        "--host": options.host,
        "--wheels": options.wheels,
    }
    lists = {
        "--scope": split_list(options.scope or []),
        "--batch": parse_numbers("--batch", options.batch or [], int),
        "--provider": split_list(options.provider or []),
        "--threads": parse_numbers("--threads", options.threads or [], int),
        "--variant": split_list(options.variant or []),
    }
    run_loadgen(
        scenario,
        options.targets or (),
        unsupported_options,
        lists,
        split_list(options.loadgen_mode or []),
        options.data,
        options.min_duration,
        options.min_accuracy,
        options.output,
        options.as_json,
        options.force,
    )


def _reject_loadgen_options(options: BenchOptions) -> None:
    loadgen_options = {
        "--loadgen-mode": options.loadgen_mode,
        "--data": options.data,
        "--min-duration": options.min_duration,
        "--min-accuracy": options.min_accuracy,
    }
    if any(loadgen_options.values()):
        from edgetl.cli.loadgen import reject_loadgen_only_options

        reject_loadgen_only_options(loadgen_options)


def _names_architectures(targets: Sequence[str]) -> bool:
    from edgetl.core.architectures import load_architectures

    architectures = load_architectures()
    are_names = all(name in architectures and not Path(name).exists() for name in targets)
    return bool(targets) and are_names


def _run_candidates(options: BenchOptions) -> None:
    from edgetl.cli.candidates import run_candidates
    from edgetl.core.config.parsers import parse_numbers
    from edgetl.core.errors import ConfigError

    thread_counts = parse_numbers("--threads", options.threads or [], int)
    unsupported_options = {
        "--scope": options.scope,
        "--batch": options.batch,
        "--variant": options.variant,
        "--session": options.session,
        "--pytorch": options.pytorch,
        "--rate": options.rate,
        "--sustained": options.sustained,
        "--profile": options.profile,
        "--inputs": options.inputs,
        "--baseline": options.baseline,
        "--any-model": options.any_model,
        "--max-regression": options.max_regression,
        "--max-p99": options.max_p99,
        "--min-speedup": options.min_speedup,
        "--host": options.host,
        "--wheels": options.wheels,
    }
    conflicts = [option for option, value in unsupported_options.items() if value]
    if conflicts or len(thread_counts) > 1 or len(options.provider or ()) > 1:
        raise ConfigError(
            "Architectures are timed in scope model, with one image, one provider and one "
            f"number of threads: remove {', '.join(conflicts) or 'the others'}, or export a "
            "model and benchmark its bundle."
        )
    run_candidates(
        _target_names(options),
        options.classes,
        options.image_size or "",
        options.latency_budget,
        next(iter(thread_counts), None),
        options.rounds,
        (options.provider or ["cpu"])[0],
        options.output,
        options.as_json,
        options.force,
    )


def _target_names(options: BenchOptions) -> list[str]:
    from edgetl.core.config.parsers import split_list

    candidates = [options.candidates] if options.candidates else []
    return [*(options.targets or ()), *split_list(candidates)]


def _build_config(options: BenchOptions) -> BenchConfig:
    from edgetl.core.config.bench import BenchConfig, Limits
    from edgetl.core.config.parsers import (
        parse_duration,
        parse_milliseconds,
        parse_numbers,
        parse_share,
        split_list,
    )
    from edgetl.core.errors import ConfigError

    names = _target_names(options)
    if len(names) != 1:
        raise ConfigError(
            f"Expected one RUN, BUNDLE or MODEL.onnx, or architectures, got {len(names)} "
            "arguments. `edgetl models` lists the architectures."
        )
    if options.image_size or options.latency_budget:
        raise ConfigError(
            "--image-size and --latency-budget can only be used with architectures. To limit the "
            "latency of a model, use --max-p99."
        )
    torch_modes = split_list(options.pytorch or ["eager"])
    variants = split_list(options.variant or [])
    max_regression, max_p99 = options.max_regression, options.max_p99
    return BenchConfig(
        target=Path(names[0]),
        scopes=split_list(options.scope or ["model,file"]),  # type: ignore[arg-type]
        batches=parse_numbers("--batch", options.batch or ["1"], int),
        threads=parse_numbers("--threads", options.threads or [], int),
        providers=split_list(options.provider or ["cpu"]),
        variants=() if variants == ("all",) else variants,
        session_modes=split_list(options.session or ["default"]),  # type: ignore[arg-type]
        torch_modes=() if torch_modes == ("none",) else torch_modes,  # type: ignore[arg-type]
        rates=parse_numbers("--rate", options.rate or [], float),
        rounds=options.rounds,
        sustained_s=parse_duration(options.sustained) if options.sustained else 0.0,
        profile=options.profile,
        inputs=options.inputs,
        baseline=options.baseline,
        any_model=options.any_model,
        limits=Limits(
            None if max_regression is None else parse_share(max_regression),
            None if max_p99 is None else parse_milliseconds(max_p99),
            options.min_speedup,
        ),
        output=options.output,
        force=options.force,
    )


def _measure(config: BenchConfig, as_json: bool) -> None:
    from edgetl.cli.bench_tables import show_bench_result
    from edgetl.core.errors import BenchError
    from edgetl.device.bench.runner import bench as measure

    result = measure_and_show(partial(measure, config), show_bench_result, as_json)
    if result.failed_rows:
        reasons = {
            f"{row.runtime} {row.variant}: {row.gate['reason']}" for row in result.failed_rows
        }
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
