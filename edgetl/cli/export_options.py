"""Options of `edgetl export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Argument(
        metavar="RUN|ARCHITECTURE",
        help="Run directory, or a torchvision architecture for a stock model.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="Bundle to write.",
        show_default="RUN/bundle or bundles/ARCHITECTURE",
    ),
]
InputKind = Annotated[
    str,
    typer.Option(
        "--input",
        help="Input of the model: `image` (uint8 images of any size, with preprocessing in the "
        "graph) or `tensor` (float32 [batch, 3, S, S]).",
    ),
]
FixedSize = Annotated[
    str | None,
    typer.Option(
        metavar="HEIGHTxWIDTH",
        help="Also export a variant for images of exactly this size, for TensorRT and CUDA graphs.",
        show_default="none",
    ),
]
Opset = Annotated[int, typer.Option(help="ONNX opset version, 18 or later.")]
Tolerance = Annotated[
    float,
    typer.Option(help="Largest absolute logit difference from PyTorch on identical tensors."),
]
PathTolerance = Annotated[
    float,
    typer.Option(
        help="Largest absolute logit difference from PyTorch on decoded images, preprocessing "
        "included."
    ),
]
Golden = Annotated[
    str,
    typer.Option(
        help="Golden images of the bundle: `validation` images, or `generated` ones if your "
        "images must not be published."
    ),
]
Weights = Annotated[str, typer.Option(help="With a stock model: `imagenet`, or a weights file.")]
ImageSize = Annotated[
    int | None,
    typer.Option(
        help="With a stock model: side of the square input, in pixels.",
        show_default="the architecture's own",
    ),
]
Images = Annotated[
    Path | None,
    typer.Option(
        help="With a stock model: folder of images to verify it on.",
        show_default="generated images",
    ),
]
Variants = Annotated[
    str,
    typer.Option(
        help="Variants to export, separated by commas: `fp32` (always included), `fp16`, `int8`, "
        "`int8-dynamic`, `int8-weights`."
    ),
]
MaxAccuracyDrop = Annotated[
    float,
    typer.Option(
        help="Largest acceptable top-1 drop of a variant against PyTorch, in percentage points."
    ),
]
MaxLatency = Annotated[
    str | None,
    typer.Option(
        metavar="5ms",
        help="Largest acceptable p50 of the recommended variant on this machine.",
        show_default="no limit",
    ),
]
Optimise = Annotated[
    str,
    typer.Option(help="Criterion for the recommended variant: `latency` or `size`."),
]
Search = Annotated[
    str,
    typer.Option(
        help="Search for int8 settings: `thorough` (all quantization methods, with corrections) or "
        "`quick` (only the most successful methods, without corrections)."
    ),
]
OrtFormat = Annotated[
    bool,
    typer.Option(
        "--ort-format",
        help="Also write each variant in .ort format, for minimal builds of ONNX Runtime.",
    ),
]
Web = Annotated[
    bool,
    typer.Option(
        "--web",
        help="Add web/, a page that runs the model in a browser: fp32, or the recommended variant "
        "with --optimise size. Requires npm.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")]
