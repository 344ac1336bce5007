"""`edgetl export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgetl.cli.console import err, out
from edgetl.core.formatting import pluralize

if TYPE_CHECKING:
    from edgetl.device.runtime.bundle import Bundle


def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="RUN|ARCHITECTURE",
            help="A run directory, or a torchvision architecture for a stock model.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The bundle to write.",
            show_default="RUN/bundle, bundles/ARCHITECTURE",
        ),
    ] = None,
    input_kind: Annotated[
        str,
        typer.Option(
            "--input",
            help="`image`: uint8 photos of any size, preprocessing in the file; `tensor`: float32 [batch, 3, S, S].",
        ),
    ] = "image",
    fixed_size: Annotated[
        str | None,
        typer.Option(
            metavar="HEIGHTxWIDTH",
            help="Add a variant for images of this size only, for TensorRT and CUDA graphs.",
            show_default="none",
        ),
    ] = None,
    opset: Annotated[int, typer.Option(help="ONNX opset, 18 or newer.")] = 18,
    tolerance: Annotated[
        float, typer.Option(help="Largest |logit difference| to PyTorch on identical tensors.")
    ] = 1e-3,
    path_tolerance: Annotated[
        float,
        typer.Option(help="Largest |logit difference| to PyTorch from decoded photo to logits."),
    ] = 0.05,
    golden: Annotated[
        str,
        typer.Option(
            help="The bundle's reference images: `validation` photos, or `generated` where photos must not leave the house."
        ),
    ] = "validation",
    weights: Annotated[
        str, typer.Option(help="For a stock model: `imagenet` or a weights file.")
    ] = "imagenet",
    image_size: Annotated[
        int | None,
        typer.Option(
            help="For a stock model: side of its input in pixels.",
            show_default="the architecture's own",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="For a stock model: photos to prove it on.", show_default="generated pictures"
        ),
    ] = None,
    variants: Annotated[
        str,
        typer.Option(
            help="What the bundle holds, separated by commas: fp32 (always), fp16, int8, int8-dynamic, int8-weights."
        ),
    ] = "fp32",
    max_accuracy_drop: Annotated[
        float, typer.Option(help="Points of top-1 that a smaller variant may lose against PyTorch.")
    ] = 1.0,
    max_latency: Annotated[
        str | None,
        typer.Option(
            metavar="5ms",
            help="Largest p50 of the recommended variant on this machine.",
            show_default="no limit",
        ),
    ] = None,
    optimise: Annotated[
        str, typer.Option(help="What the recommended variant is best at: `latency` or `size`.")
    ] = "latency",
    search: Annotated[
        str,
        typer.Option(
            help="For int8: `thorough`, every way to quantize, with repairs; `quick`, what is chosen most often, without."
        ),
    ] = "thorough",
    ort_format: Annotated[
        bool,
        typer.Option(
            "--ort-format",
            help="Write each variant as .ort too, for minimal builds of ONNX Runtime.",
        ),
    ] = False,
    web: Annotated[
        bool,
        typer.Option(
            "--web",
            help="Add web/, a page that runs fp32 in a browser (what is recommended, with --optimise size); wants npm, once.",
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
) -> None:
    """Write one self-contained ONNX bundle and prove it equal to PyTorch.

    The bundle is all that a device needs: model with preprocessing inside, labels, reference images, clients.
    It is written only if the file gives PyTorch's answers on real images; otherwise nothing is left behind.
    """
    from edgetl.core.architectures import load_architectures
    from edgetl.core.config.export import ExportConfig
    from edgetl.core.config.options import parse_height_width, parse_milliseconds
    from edgetl.core.errors import ConfigError
    from edgetl.core.paths import RunDirectory

    config = ExportConfig(
        output=output,
        input=input_kind,  # type: ignore[arg-type]
        fixed_size=None if fixed_size is None else parse_height_width("--fixed-size", fixed_size),
        opset=opset,
        network_tolerance=tolerance,
        path_tolerance=path_tolerance,
        golden=golden,  # type: ignore[arg-type]
        force=force,
        variants=tuple(name.strip() for name in variants.split(",") if name.strip()),
        max_accuracy_drop=max_accuracy_drop,
        max_latency_ms=None if max_latency is None else parse_milliseconds(max_latency),
        optimise=optimise,  # type: ignore[arg-type]
        search=search,  # type: ignore[arg-type]
        ort_format=ort_format,
        web=web,
    )
    # A folder may be called like an architecture; only a run directory, or what cannot be an architecture, is taken for a run.
    is_run = RunDirectory.exists_at(Path(model)) or (
        model not in load_architectures() and (Path(model).is_dir() or "/" in model)
    )
    if is_run and (images or image_size or weights != "imagenet"):
        raise ConfigError(
            "--weights, --images and --image-size belong to a stock architecture; a run brings its own."
        )

    from edgetl.cli.progress import open_step_progress
    from edgetl.export.exporter import export_architecture, export_run

    with open_step_progress() as progress:
        if is_run:
            bundle = export_run(RunDirectory.open(Path(model)), config, progress)
        else:
            bundle = export_architecture(model, weights, config, images, image_size, progress)
    _print_bundle(bundle)
    if bundle.recommended_variant_name is None:
        from edgetl.core.errors import ExportError
        from edgetl.export.selection import describe_closest_variant

        raise ExportError(
            f"No variant meets the limits, so the bundle recommends none. {describe_closest_variant(bundle.variants, config)} "
            "Loosen --max-latency or --max-accuracy-drop, add --variants, or train a smaller model."
        )
    err.print(
        f"Next: edgetl bench {bundle.directory.path}   and   edgetl predict {bundle.directory.path} IMAGE",
        style="dim",
        soft_wrap=True,
    )


def _print_bundle(bundle: Bundle) -> None:
    variant = bundle.select_variant("fp32")
    network, path = variant.parity["network"], variant.parity["path"]
    out.print(
        f"[bold green]Proven equal to PyTorch[/] on {network['images']} {network['kind']} images:"
    )
    out.print(
        f"  network, identical tensors   max |Δlogit| {network['max_abs_diff']:.2g}  (at most {network['tolerance']:g})"
    )
    pixels = (
        ""
        if path["max_grey_levels"] is None
        else f", pixels within {path['max_grey_levels']} grey level"
    )
    difference = f"max |Δlogit| {path['max_abs_diff']:.2g}  (at most {path['tolerance']:g})"
    ties = f" but {pluralize(path['ties'], 'tie')}" if path.get("ties") else ""
    out.print(f"  whole path, decoded photos   {difference}{pixels}, same top-1 on all{ties}")
    if variant.accuracy:
        low, high = variant.accuracy["ci95"]
        out.print(f"Accuracy of this file on {variant.accuracy['images']} {variant.accuracy['split']} images: "
                  f"{variant.accuracy['top1']:.1%}  (95% interval {low:.1%} to {high:.1%})")  # fmt: skip
    else:
        out.print("Accuracy: not measured, there are no labelled validation images.")
    if len(bundle.variants) > 1:
        _print_variants(bundle)
    size = sum(each.bytes for each in bundle.variants) / 1e6
    files = ", ".join(each.file for each in bundle.variants)
    out.print(
        f"Bundle: {bundle.directory.path}  ({files}, {size:.1f} MB, {len(bundle.labels)} classes)",
        soft_wrap=True,
    )
    if "web" in bundle.manifest:
        _print_web(bundle)


def _print_web(bundle: Bundle) -> None:
    web = bundle.manifest["web"]
    proof, size = web["proof"], sum(each["bytes"] for each in web["files"]) / 1e6
    told = (
        f"max |Δlogit| {proof['max_logit_difference']:.2g} on {proof['images']} reference images"
        if proof["checked"]
        else f"not proven, {proof['reason']}"
    )
    out.print(
        f"Page: {bundle.directory.web}  ({web['variant']}, {web['runtime']}, {size:.1f} MB; {told})",
        soft_wrap=True,
    )
    out.print(
        f"  python3 -m http.server -d {bundle.directory.web}   and open http://localhost:8000",
        soft_wrap=True,
    )


def _print_variants(bundle: Bundle) -> None:
    from rich.table import Table

    from edgetl.export.selection import accuracy_drop

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("variant")
    for heading in ("MB", "p50 ms", "speed-up [95%]", "top-1", "lost", "flips", "max |Δlogit|"):
        table.add_column(heading, justify="right")
    for variant in bundle.variants:
        latency, accuracy, path = variant.latency, variant.accuracy, variant.parity["path"]
        speedup = (
            f"{latency['speedup']:.2f} [{latency['ci95'][0]:.2f}, {latency['ci95'][1]:.2f}]"
            if "speedup" in latency
            else ""
        )
        table.add_row(
            f"{variant.name} [bold green]recommended[/]"
            if variant.name == bundle.recommended_variant_name
            else variant.name,
            f"{variant.bytes / 1e6:.1f}",
            f"{latency['p50_ms']:.2f}" if latency.get("p50_ms") else "—",
            speedup,
            f"{accuracy['top1']:.1%}" if accuracy else "—",
            f"{accuracy_drop(variant):.1f}",
            str(accuracy["flips"]) if accuracy else "—",
            f"{path['max_abs_diff']:.2g}",
        )
    out.print(table)
    for name, reason in bundle.manifest.get("not_recommended", {}).items():
        out.print(f"{name} {reason}.", markup=False, soft_wrap=True)
    for variant in bundle.variants:
        if variant.report.get("chosen"):
            out.print(f"{variant.name}: {variant.report['chosen']}.", markup=False, soft_wrap=True)
        worst = variant.report.get("search", {}).get("worst_layers")
        if worst:
            out.print(
                f"{variant.name}: the layers that lose most are {', '.join(worst)}.",
                markup=False,
                soft_wrap=True,
            )
        if variant.report.get("diverges"):
            out.print(f"{variant.name}: {variant.report['diverges']}", markup=False, soft_wrap=True)
        blamed = variant.report.get("slow_because", {}).get("to_blame")
        if blamed:
            out.print(f"{variant.name}: its time goes to {blamed}.", markup=False, soft_wrap=True)
        if (
            variant.report.get("search", {}).get("vnni") is False
            and variant.latency.get("verdict") != "faster"
        ):
            out.print(
                f"{variant.name}: this CPU has no VNNI, so integers gain little here; `edgetl bench` on the device decides."
            )
