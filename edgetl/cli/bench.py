"""`edgetl bench`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetl.cli.progress import measure_and_show

if TYPE_CHECKING:
    from edgetl.core.artifacts.bench import BenchResult

EXIT_LIMIT_BROKEN, EXIT_LIMIT_UNDECIDED = 4, 5
"""A limit is broken; the data do not decide whether one is."""
_DEFAULT_ROUNDS, _DEFAULT_CLASSES = 8, 10


def bench(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN|BUNDLE|MODEL.onnx|ARCHITECTURE...",
            help="A run directory, a bundle, or one ONNX file; or architectures to choose from, which are timed without training.",
            show_default=False,
        ),
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="What is timed: `model`, tensors to logits; `image`, a decoded image to its label; `file`, an encoded file to its label. "
            "Repeat it or separate by commas, as with all lists.",
            show_default="model,file",
        ),
    ] = None,
    batch: Annotated[
        list[str] | None,
        typer.Option(metavar="1,4", help="Images a call, in scope `model`.", show_default="1"),
    ] = None,
    threads: Annotated[
        list[str] | None,
        typer.Option(
            metavar="1,2",
            help="Intra-op threads of every runtime.",
            show_default="the cores available",
        ),
    ] = None,
    provider: Annotated[
        list[str] | None,
        typer.Option(
            help="Execution providers: cpu, cuda, tensorrt, nv_tensorrt_rtx, ...; none falls back silently.",
            show_default="cpu",
        ),
    ] = None,
    variant: Annotated[
        list[str] | None, typer.Option(help="Variants of the bundle.", show_default="all")
    ] = None,
    session: Annotated[
        list[str] | None,
        typer.Option(
            help="ONNX Runtime on a GPU: `default`, `cuda-graph` (one launch a run), `no-tf32` (float32 in full).",
            show_default="default",
        ),
    ] = None,
    pytorch: Annotated[
        list[str] | None,
        typer.Option(
            help="PyTorch baselines: `eager`, `bf16`, `compile`, and on a GPU `fp16`, `cuda-graph`, `fp16-cuda-graph`; "
            "`none` leaves PyTorch out.",
            show_default="eager",
        ),
    ] = None,
    rate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="30",
            help="Measure paced arrivals too, so many a second: idle gaps change latency.",
            show_default="single stream",
        ),
    ] = None,
    rounds: Annotated[
        int,
        typer.Option(
            help="Rounds; each runs every configuration once in a fresh process, in random order."
        ),
    ] = _DEFAULT_ROUNDS,
    sustained: Annotated[
        str | None,
        typer.Option(
            metavar="10m",
            help="Then run the recommended configuration that long: drift, throttling, steady state.",
        ),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Measure every operator as well.")
    ] = False,
    inputs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npy|.npz",
            help="Feed a lone ONNX file with this.",
            show_default="random values",
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="RESULT.json", help="Compare with an earlier result, of this or another device."
        ),
    ] = None,
    any_model: Annotated[
        bool, typer.Option("--any-model", help="Compare though --baseline measured another model.")
    ] = False,
    max_regression: Annotated[
        str | None,
        typer.Option(
            metavar="5%", help="Fail if a configuration takes so much longer than in --baseline."
        ),
    ] = None,
    max_p99: Annotated[
        str | None,
        typer.Option(
            metavar="30ms",
            help="Fail if the recommended configuration's p99 is above this, in the first scope; also in paced arrivals.",
        ),
    ] = None,
    min_speedup: Annotated[
        float | None,
        typer.Option(
            metavar="2",
            help="Fail if the recommended configuration is not so many times as fast as eager PyTorch.",
        ),
    ] = None,
    candidates: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Architectures to choose from, as the arguments."),
    ] = None,
    classes: Annotated[
        int, typer.Option(help="For architectures: classes of the new head.")
    ] = _DEFAULT_CLASSES,
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="160,224",
            help="For architectures: sides of the input in pixels.",
            show_default="each one's own",
        ),
    ] = None,
    latency_budget: Annotated[
        str | None, typer.Option(metavar="5ms", help="For architectures: p50 to stay below.")
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="USER@DEVICE",
            help="Measure there, over OpenSSH; several at once. What is installed there for it is removed again.",
        ),
    ] = None,
    wheels: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="With --host: install from these wheels.",
            show_default="the device's own index",
        ),
    ] = None,
    loadgen: Annotated[
        str | None,
        typer.Option(
            metavar="SCENARIO",
            help="Let MLPerf LoadGen drive the recommended variant instead: `single-stream`, `multi-stream`, `offline`.",
        ),
    ] = None,
    loadgen_mode: Annotated[
        list[str] | None,
        typer.Option(
            help="With --loadgen: LoadGen's `accuracy` or `performance` mode.", show_default="both"
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="With --loadgen: labelled images, a folder for each label.",
            show_default="the reference images",
        ),
    ] = None,
    min_duration: Annotated[
        str | None,
        typer.Option(
            metavar="10m",
            help="With --loadgen: its min_duration; MLPerf's rules want 10m.",
            show_default="10s",
        ),
    ] = None,
    min_accuracy: Annotated[
        str | None,
        typer.Option(
            metavar="90%",
            help="With --loadgen: fail where fewer answers are right.",
            show_default="all reference images; of labelled ones 99% of the accuracy at export",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The result file to write; with --host, the folder for one of each.",
            show_default="a new one in RUN/bench or ./bench",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Measure with more threads than there are cores.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object, and nothing else.")
    ] = False,
) -> None:
    """Measure ONNX Runtime against the full PyTorch model, on this device.

    Every variant first answers the bundle's reference images; only one that answers as PyTorch did is timed.
    Each round runs in fresh processes; the speed-up comes with its 95% interval.
    The verdict says when the data do not decide or the device was not quiet.

    Exit status: 0, also when the data decide nothing; 1, nothing was measured or a variant answers wrongly; 4, a limit is broken;
    5, the data do not decide whether a limit is kept.
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

        torch_asked = pytorch is not None and split_list(pytorch) != ("none",)
        without_loadgen = {
            "--session": session,
            "--pytorch": torch_asked, "--rate": rate, "--rounds": rounds != _DEFAULT_ROUNDS, "--sustained": sustained, "--profile": profile,
            "--inputs": inputs, "--baseline": baseline, "--any-model": any_model, "--max-regression": max_regression,
            "--max-p99": max_p99, "--min-speedup": min_speedup, "--candidates": candidates, "--classes": classes != _DEFAULT_CLASSES,
            "--image-size": image_size, "--latency-budget": latency_budget, "--host": host, "--wheels": wheels,
        }  # fmt: skip
        lists = {
            "--scope": split_list(scope or []), "--batch": parse_numbers("--batch", batch or [], int), "--provider": split_list(provider or []),
            "--threads": parse_numbers("--threads", threads or [], int), "--variant": split_list(variant or []),
        }  # fmt: skip
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
    named, counts = (
        [*(targets or ()), *split_list([candidates] if candidates else [])],
        parse_numbers("--threads", threads or [], int),
    )
    if candidates or (
        targets
        and all(name in load_architectures() and not Path(name).exists() for name in targets)
    ):
        of_a_model = {
            "--scope": scope, "--batch": batch, "--variant": variant,
            "--session": session, "--pytorch": pytorch, "--rate": rate, "--sustained": sustained,
            "--profile": profile, "--inputs": inputs, "--baseline": baseline, "--any-model": any_model,
            "--max-regression": max_regression, "--max-p99": max_p99, "--min-speedup": min_speedup, "--host": host, "--wheels": wheels,
        }  # fmt: skip
        given = [option for option, value in of_a_model.items() if value]
        if given or len(counts) > 1 or len(provider or ()) > 1:
            raise ConfigError(
                f"Architectures are timed in scope model, one image, with one provider and one number of threads; "
                f"leave out {', '.join(given) or 'the others'}, or export one and measure its bundle."
            )
        from edgetl.cli.candidates import run_candidates

        run_candidates(
            named,
            classes,
            image_size or "",
            latency_budget,
            next(iter(counts), None),
            rounds,
            (provider or ["cpu"])[0],
            output,
            as_json,
            force,
        )
        return
    if len(named) != 1:
        raise ConfigError(
            "Give one RUN, BUNDLE or MODEL.onnx to measure, or architectures to choose from (`edgetl models` lists them)."
        )
    if image_size or latency_budget:
        raise ConfigError(
            "--image-size and --latency-budget belong to architectures; a model brings its own input, and --max-p99 bounds it."
        )
    from edgetl.core.config.bench import BenchConfig, Limits
    from edgetl.core.config.options import parse_duration, parse_milliseconds, parse_share

    modes = split_list(pytorch or ["eager"])
    config = BenchConfig(
        target=Path(named[0]),
        scopes=split_list(scope or ["model,file"]),  # type: ignore[arg-type]
        batches=parse_numbers("--batch", batch or ["1"], int),
        threads=counts,
        providers=split_list(provider or ["cpu"]),
        variants=() if variant is None or split_list(variant) == ("all",) else split_list(variant),
        session_modes=split_list(session or ["default"]),  # type: ignore[arg-type]
        torch_modes=() if modes == ("none",) else modes,  # type: ignore[arg-type]
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
        raise ConfigError("--wheels is what --host installs from: name a host too.")
    from edgetl.cli.bench_tables import show_bench_result
    from edgetl.device.bench.runner import bench as measure

    result = measure_and_show(partial(measure, config), show_bench_result, as_json)
    if result.failed_rows:
        reasons = {
            f"{row.runtime} {row.variant}: {row.gate['reason']}" for row in result.failed_rows
        }
        raise BenchError(
            f"The reference images did not pass, so it was not timed. {'; '.join(sorted(reasons))}. "
            "On this device the bundle does not answer as it was proven to: export it again, or try another --provider."
        )
    _exit_by_limits(result)


def _exit_by_limits(result: BenchResult) -> None:
    outcomes: set[Any] = {judged.outcome for judged in result.limit_checks}
    if "broken" in outcomes:
        raise typer.Exit(EXIT_LIMIT_BROKEN)
    if "undecided" in outcomes:
        raise typer.Exit(EXIT_LIMIT_UNDECIDED)
