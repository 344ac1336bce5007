"""Options of `edgetl bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Target = Annotated[
    Path,
    typer.Argument(
        metavar="RUN|BUNDLE|MODEL.onnx",
        help="Run directory, bundle or ONNX file.",
        show_default=False,
    ),
]
Scope = Annotated[
    list[str] | None,
    typer.Option(
        help="What to time: `model` (tensors to logits), `image` (decoded image to label), "
        "`file` (encoded file to label). Like all lists, separated by commas or repeated.",
        show_default="model,file",
    ),
]
Batch = Annotated[
    list[str] | None,
    typer.Option(metavar="1,4", help="Batch sizes in scope `model`.", show_default="1"),
]
Threads = Annotated[
    list[str] | None,
    typer.Option(
        metavar="1,2",
        help="Intra-op threads of each runtime.",
        show_default="available cores",
    ),
]
Provider = Annotated[
    list[str] | None,
    typer.Option(
        help="Execution providers: cpu, cuda, tensorrt, nv_tensorrt_rtx, ...; without silent "
        "fallback.",
        show_default="cpu",
    ),
]
Variant = Annotated[
    list[str] | None,
    typer.Option(help="Variants of the bundle to measure.", show_default="all"),
]
Session = Annotated[
    list[str] | None,
    typer.Option(
        help="ONNX Runtime session modes on a GPU: `default`, `cuda-graph` (one launch per "
        "inference), `no-tf32` (full float32 precision).",
        show_default="default",
    ),
]
PyTorch = Annotated[
    list[str] | None,
    typer.Option(
        help="PyTorch baselines: `eager`, `bf16`, `compile`; on a GPU also `fp16`, "
        "`cuda-graph`, `fp16-cuda-graph`; or `none`.",
        show_default="eager",
    ),
]
Rate = Annotated[
    list[str] | None,
    typer.Option(
        metavar="30",
        help="Also measure paced arrivals, in images per second; idle gaps affect latency.",
        show_default="single stream only",
    ),
]
Rounds = Annotated[
    int,
    typer.Option(
        help="Number of rounds. Each runs every configuration once, in fresh processes and "
        "in random order."
    ),
]
Sustained = Annotated[
    str | None,
    typer.Option(
        metavar="10m",
        help="Afterwards run the recommended configuration for this long, to detect drift and "
        "throttling.",
    ),
]
Profile = Annotated[bool, typer.Option("--profile", help="Also profile each operator.")]
Inputs = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.npy|.npz",
        help="Input tensors for an ONNX file without a bundle.",
        show_default="random values",
    ),
]
Baseline = Annotated[
    Path | None,
    typer.Option(
        metavar="RESULT.json",
        help="Compare with an earlier result from this or another device.",
    ),
]
AnyModel = Annotated[
    bool,
    typer.Option("--any-model", help="Allow a --baseline that measured a different model."),
]
MaxRegression = Annotated[
    str | None,
    typer.Option(
        metavar="5%",
        help="Fail if a configuration is slower than in --baseline by more than this.",
    ),
]
MaxP99 = Annotated[
    str | None,
    typer.Option(
        metavar="30ms",
        help="Fail if the p99 of the recommended configuration in the first scope, paced "
        "arrivals included, exceeds this.",
    ),
]
MinSpeedup = Annotated[
    float | None,
    typer.Option(
        metavar="2",
        help="Fail if the speed-up of the recommended configuration over eager PyTorch is "
        "below this.",
    ),
]
Host = Annotated[
    list[str] | None,
    typer.Option(
        metavar="USER@DEVICE",
        help="Measure on this host over OpenSSH; repeat it for several hosts in parallel. The "
        "temporary installation is removed afterwards.",
    ),
]
Wheels = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="With --host: folder of wheels to install from.",
        show_default="the host's package index",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="Result file to write; with --host, the folder for one result per host.",
        show_default="a new file in RUN/bench or ./bench",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Allow more threads than available cores.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
