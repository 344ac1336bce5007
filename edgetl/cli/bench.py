"""`edgetl bench`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetl.cli.progress import measure_and_show

if TYPE_CHECKING:
    from edgetl.core.artifacts.bench import BenchResult

EXIT_LIMIT_BROKEN = 4
"""Exit status if a limit is broken."""
EXIT_LIMIT_UNDECIDED = 5
"""Exit status if the measurements are inconclusive for a limit."""
_DEFAULT_ROUNDS = 8
_DEFAULT_CLASSES = 10


def bench(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN|BUNDLE|MODEL.onnx|ARCHITECTURE...",
            help="A run directory, a bundle or an ONNX file; or architectures, to compare their "
            "latency before training.",
            show_default=False,
        ),
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="What to time: `model` (tensors to logits), `image` (decoded image to label), "
            "`file` (encoded file to label). Like all lists, separated by commas or repeated.",
            show_default="model,file",
        ),
    ] = None,
    batch: Annotated[
        list[str] | None,
        typer.Option(metavar="1,4", help="Batch sizes in scope `model`.", show_default="1"),
    ] = None,
    threads: Annotated[
        list[str] | None,
        typer.Option(
            metavar="1,2",
            help="Intra-op threads of each runtime.",
            show_default="available cores",
        ),
    ] = None,
    provider: Annotated[
        list[str] | None,
        typer.Option(
            help="Execution providers: cpu, cuda, tensorrt, nv_tensorrt_rtx, ...; without silent "
            "fallback.",
            show_default="cpu",
        ),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(help="Variants of the bundle to measure.", show_default="all"),
    ] = None,
    session: Annotated[
        list[str] | None,
        typer.Option(
            help="ONNX Runtime session modes on a GPU: `default`, `cuda-graph` (one launch per "
            "inference), `no-tf32` (full float32 precision).",
            show_default="default",
        ),
    ] = None,
    pytorch: Annotated[
        list[str] | None,
        typer.Option(
            help="PyTorch baselines: `eager`, `bf16`, `compile`; on a GPU also `fp16`, "
            "`cuda-graph`, `fp16-cuda-graph`; or `none`.",
            show_default="eager",
        ),
    ] = None,
    rate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="30",
            help="Also measure paced arrivals, in images per second; idle gaps affect latency.",
            show_default="single stream only",
        ),
    ] = None,
    rounds: Annotated[
        int,
        typer.Option(
            help="Number of rounds. Each runs every configuration once, in fresh processes and "
            "in random order."
        ),
    ] = _DEFAULT_ROUNDS,
    sustained: Annotated[
        str | None,
        typer.Option(
            metavar="10m",
            help="Afterwards run the recommended configuration for this long, to detect drift and "
            "throttling.",
        ),
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Also profile each operator.")] = False,
    inputs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npy|.npz",
            help="Input tensors for an ONNX file without a bundle.",
            show_default="random values",
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="RESULT.json",
            help="Compare with an earlier result from this or another device.",
        ),
    ] = None,
    any_model: Annotated[
        bool,
        typer.Option("--any-model", help="Allow a --baseline that measured a different model."),
    ] = False,
    max_regression: Annotated[
        str | None,
        typer.Option(
            metavar="5%",
            help="Fail if a configuration is slower than in --baseline by more than this.",
        ),
    ] = None,
    max_p99: Annotated[
        str | None,
        typer.Option(
            metavar="30ms",
            help="Fail if the p99 of the recommended configuration in the first scope, paced "
            "arrivals included, exceeds this.",
        ),
    ] = None,
    min_speedup: Annotated[
        float | None,
        typer.Option(
            metavar="2",
            help="Fail if the speed-up of the recommended configuration over eager PyTorch is "
            "below this.",
        ),
    ] = None,
    candidates: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Architectures to compare; same as giving arguments."),
    ] = None,
    classes: Annotated[
        int, typer.Option(help="With architectures: number of classes of the new head.")
    ] = _DEFAULT_CLASSES,
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="160,224",
            help="With architectures: side of the square input, in pixels.",
            show_default="the architecture's own",
        ),
    ] = None,
    latency_budget: Annotated[
        str | None,
        typer.Option(metavar="5ms", help="With architectures: largest acceptable p50."),
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
        ),
    ] = None,
    loadgen: Annotated[
        str | None,
        typer.Option(
            metavar="SCENARIO",
            help="Run the recommended variant under MLPerf LoadGen instead: `single-stream`, "
            "`multi-stream` or `offline`.",
        ),
    ] = None,
    loadgen_mode: Annotated[
        list[str] | None,
        typer.Option(
            help="With --loadgen: run the `accuracy` or the `performance` mode.",
            show_default="both",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="With --loadgen: labelled images, one folder per label.",
            show_default="the golden images",
        ),
    ] = None,
    min_duration: Annotated[
        str | None,
        typer.Option(
            metavar="10m",
            help="With --loadgen: LoadGen's min_duration; the MLPerf rules require 10m.",
            show_default="10s",
        ),
    ] = None,
    min_accuracy: Annotated[
        str | None,
        typer.Option(
            metavar="90%",
            help="With --loadgen: fail if the accuracy is below this.",
            show_default="100% on golden images, 99% of the accuracy at export on --data",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Result file to write; with --host, the folder for one result per host.",
            show_default="a new file in RUN/bench or ./bench",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Allow more threads than available cores.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object.")
    ] = False,
) -> None:
    """Benchmark a bundle against PyTorch on this device.

    Each variant is checked on the bundle's golden images first; only variants that reproduce
    PyTorch's predictions are timed. Each round runs in fresh processes, and speed-ups are reported
    with 95% intervals. The verdict is `inconclusive` or `noisy` if the measurements are.

    Exit status: 0 on success, also if comparisons are inconclusive; 1, nothing was measured or a
    variant failed its check; 4, a limit is broken; 5, a limit is undecided.
    """
    from edgetl.core.architectures import load_architectures
    from edgetl.core.config.options import parse_numbers, split_list
    from edgetl.core.errors import BenchError, ConfigError

    with_loadgen = {
        "--loadgen-mode": loadgen_mode,
        "--data": data,
        "--min-duration": min_duration,
        "--min-accuracy": min_accuracy,
    }
    if loadgen is not None:
        from edgetl.cli.loadgen import run_loadgen

        uses_pytorch = pytorch is not None and split_list(pytorch) != ("none",)
        without_loadgen = {
            "--session": session,
            "--pytorch": uses_pytorch,
            "--rate": rate,
            "--rounds": rounds != _DEFAULT_ROUNDS,
            "--sustained": sustained,
            "--profile": profile,
            "--inputs": inputs,
            "--baseline": baseline,
            "--any-model": any_model,
            "--max-regression": max_regression,
            "--max-p99": max_p99,
            "--min-speedup": min_speedup,
            "--candidates": candidates,
            "--classes": classes != _DEFAULT_CLASSES,
            "--image-size": image_size,
            "--latency-budget": latency_budget,
            "--host": host,
            "--wheels": wheels,
        }
        lists = {
            "--scope": split_list(scope or []),
            "--batch": parse_numbers("--batch", batch or [], int),
            "--provider": split_list(provider or []),
            "--threads": parse_numbers("--threads", threads or [], int),
            "--variant": split_list(variant or []),
        }
        modes = split_list(loadgen_mode or [])
        run_loadgen(
            loadgen,
            targets or (),
            without_loadgen,
            lists,
            modes,
            data,
            min_duration,
            min_accuracy,
            output,
            as_json,
            force,
        )
        return
    if any(with_loadgen.values()):
        from edgetl.cli.loadgen import reject_loadgen_only_options

        reject_loadgen_only_options(with_loadgen)
    names = [*(targets or ()), *split_list([candidates] if candidates else [])]
    thread_counts = parse_numbers("--threads", threads or [], int)
    if candidates or (
        targets
        and all(name in load_architectures() and not Path(name).exists() for name in targets)
    ):
        without_architectures = {
            "--scope": scope,
            "--batch": batch,
            "--variant": variant,
            "--session": session,
            "--pytorch": pytorch,
            "--rate": rate,
            "--sustained": sustained,
            "--profile": profile,
            "--inputs": inputs,
            "--baseline": baseline,
            "--any-model": any_model,
            "--max-regression": max_regression,
            "--max-p99": max_p99,
            "--min-speedup": min_speedup,
            "--host": host,
            "--wheels": wheels,
        }
        conflicts = [option for option, value in without_architectures.items() if value]
        if conflicts or len(thread_counts) > 1 or len(provider or ()) > 1:
            raise ConfigError(
                "Architectures are timed in scope model, with one image, one provider and one "
                f"number of threads: remove {', '.join(conflicts) or 'the others'}, or export a "
                "model and benchmark its bundle."
            )
        from edgetl.cli.candidates import run_candidates

        run_candidates(
            names,
            classes,
            image_size or "",
            latency_budget,
            next(iter(thread_counts), None),
            rounds,
            (provider or ["cpu"])[0],
            output,
            as_json,
            force,
        )
        return
    if len(names) != 1:
        raise ConfigError(
            f"Expected one RUN, BUNDLE or MODEL.onnx, or architectures, got {len(names)} "
            "arguments. `edgetl models` lists the architectures."
        )
    if image_size or latency_budget:
        raise ConfigError(
            "--image-size and --latency-budget can only be used with architectures. To limit the "
            "latency of a model, use --max-p99."
        )
    from edgetl.core.config.bench import BenchConfig, Limits
    from edgetl.core.config.options import parse_duration, parse_milliseconds, parse_share

    torch_modes = split_list(pytorch or ["eager"])
    config = BenchConfig(
        target=Path(names[0]),
        scopes=split_list(scope or ["model,file"]),  # type: ignore[arg-type]
        batches=parse_numbers("--batch", batch or ["1"], int),
        threads=thread_counts,
        providers=split_list(provider or ["cpu"]),
        variants=() if variant is None or split_list(variant) == ("all",) else split_list(variant),
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
        return
    if wheels is not None:
        raise ConfigError("--wheels can only be used with --host.")
    from edgetl.cli.bench_tables import show_bench_result
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
        raise typer.Exit(EXIT_LIMIT_BROKEN)
    if "undecided" in outcomes:
        raise typer.Exit(EXIT_LIMIT_UNDECIDED)
