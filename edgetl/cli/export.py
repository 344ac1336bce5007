"""`edgetl export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgetl.cli.console import err, out


def export(
    model: Annotated[
        str, typer.Argument(metavar="RUN|ARCHITECTURE", help="A run directory, or a torchvision architecture for a stock model.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The bundle to write.", show_default="RUN/bundle, bundles/ARCHITECTURE")
    ] = None,
    input_kind: Annotated[
        str,
        typer.Option("--input", help="`image`: uint8 photos of any size, preprocessing in the file; `tensor`: float32 \\[batch, 3, S, S]."),
    ] = "image",
    opset: Annotated[int, typer.Option(help="ONNX opset, 18 or newer.")] = 18,
    tolerance: Annotated[float, typer.Option(help="Largest |logit difference| to PyTorch on identical tensors.")] = 1e-3,
    path_tolerance: Annotated[float, typer.Option(help="Largest |logit difference| to PyTorch from decoded photo to logits.")] = 0.05,
    golden: Annotated[
        str, typer.Option(help="The bundle's reference images: `validation` photos, or `generated` where photos must not leave the house.")
    ] = "validation",
    weights: Annotated[str, typer.Option(help="For a stock model: `imagenet` or a weights file.")] = "imagenet",
    image_size: Annotated[
        int | None, typer.Option(help="For a stock model: side of its input in pixels.", show_default="the architecture's own")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="For a stock model: photos to prove it on.", show_default="generated pictures")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
) -> None:
    """Write one self-contained ONNX bundle and prove it equal to PyTorch.

    The bundle is all that a device needs: model with preprocessing inside, labels, reference images, a client.
    It is written only if the file gives PyTorch's answers on real images; otherwise nothing is left behind.
    """
    from edgetl.core.architectures import architectures
    from edgetl.core.config import ExportConfig
    from edgetl.core.errors import ConfigError
    from edgetl.core.layout import RunDirectory

    config = ExportConfig(output, input_kind, opset, tolerance, path_tolerance, golden, force)  # type: ignore[arg-type]
    # A folder may be called like an architecture; only a run directory, or what cannot be an architecture, is taken for a run.
    is_run = RunDirectory.is_one(Path(model)) or (model not in architectures() and (Path(model).is_dir() or "/" in model))
    if is_run and (images or image_size or weights != "imagenet"):
        raise ConfigError("--weights, --images and --image-size belong to a stock architecture; a run brings its own.")

    from edgetl.cli.progress import steps
    from edgetl.export.exporting import export_architecture, export_run

    with steps() as progress:
        if is_run:
            bundle = export_run(RunDirectory.open(Path(model)), config, progress)
        else:
            bundle = export_architecture(model, weights, config, images, image_size, progress)
    _print(bundle)


def _print(bundle: Any) -> None:
    variant = bundle.variant()
    network, path = variant.parity["network"], variant.parity["path"]
    out.print(f"[bold green]Proven equal to PyTorch[/] on {network['images']} {network['kind']} images:")
    out.print(f"  network, identical tensors   max |Δlogit| {network['max_abs_diff']:.2g}  (at most {network['tolerance']:g})")
    pixels = "" if path["max_grey_levels"] is None else f", pixels within {path['max_grey_levels']} grey level"
    difference = f"max |Δlogit| {path['max_abs_diff']:.2g}  (at most {path['tolerance']:g})"
    out.print(f"  whole path, decoded photos   {difference}{pixels}, same top-1 on all")
    if variant.accuracy:
        low, high = variant.accuracy["ci95"]
        out.print(f"Accuracy of this file on {variant.accuracy['images']} {variant.accuracy['split']} images: "
                  f"{variant.accuracy['top1']:.1%}  (95% interval {low:.1%} to {high:.1%})")  # fmt: skip
    else:
        out.print("Accuracy: not measured, there are no labelled validation images.")
    out.print(
        f"Bundle: {bundle.directory.path}  ({variant.file}, {variant.bytes / 1e6:.1f} MB, {len(bundle.labels)} classes)", soft_wrap=True
    )
    err.print(
        f"Next: edgetl bench {bundle.directory.path}   and   edgetl predict {bundle.directory.path} IMAGE", style="dim", soft_wrap=True
    )
