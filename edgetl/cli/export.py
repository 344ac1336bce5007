"""`edgetl export`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetl.cli.config_options import config_options
from edgetl.cli.console import err, out
from edgetl.core.config.export import ExportConfig
from edgetl.core.formatting import MISSING_VALUE, format_percent, pluralize

if TYPE_CHECKING:
    from edgetl.core.artifacts.bundle import LatencyRecord, ParityRecord, VariantRecord, WebRecord
    from edgetl.device.runtime.bundle import Bundle


@config_options(ExportConfig)
def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="RUN|ARCHITECTURE",
            help="Run directory, or a torchvision architecture for a stock model.",
        ),
    ],
    options: dict[str, Any],
    weights: Annotated[
        str, typer.Option(help="With a stock model: `imagenet`, or a weights file.")
    ] = "imagenet",
    image_size: Annotated[
        int | None,
        typer.Option(
            help="With a stock model: side of the square input, in pixels.",
            show_default="the architecture's own",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="With a stock model: folder of images to verify it on.",
            show_default="generated images",
        ),
    ] = None,
) -> None:
    """Export a run or a stock model to a verified ONNX bundle.

    The bundle contains everything a device needs: the model with its preprocessing, labels, golden
    images and client code. It is written only if ONNX Runtime reproduces PyTorch's predictions on
    real images.
    """
    from edgetl.core.architectures import load_architectures
    from edgetl.core.errors import ConfigError
    from edgetl.core.paths import RunDirectory

    config = ExportConfig(**options)
    # A folder may have the name of an architecture, so only a run directory, or a path that cannot
    # be an architecture, counts as a run.
    is_run = RunDirectory.exists_at(Path(model)) or (
        model not in load_architectures() and (Path(model).is_dir() or "/" in model)
    )
    if is_run and (images or image_size or weights != "imagenet"):
        raise ConfigError(
            "--weights, --images and --image-size can only be used with a stock architecture, not "
            "with a run."
        )

    from edgetl.cli.progress import open_step_progress
    from edgetl.export.exporter import export_architecture, export_run

    with open_step_progress() as progress:
        if is_run:
            bundle = export_run(model, config, progress)
        else:
            bundle = export_architecture(model, weights, config, images, image_size, progress)
    _print_bundle(bundle)
    if bundle.manifest.recommended is None:
        from edgetl.core.errors import ExportError
        from edgetl.export.variant_selection import describe_closest_variant

        raise ExportError(
            "No variant meets the limits, so none is recommended. "
            f"{describe_closest_variant(bundle.variants, config)} Increase --max-latency or "
            "--max-accuracy-drop, add --variants, or train a smaller model."
        )
    if bundle.manifest.failed_formats:
        from edgetl.core.errors import ParityError

        names = ", ".join(bundle.manifest.failed_formats)
        raise ParityError(
            f"The bundle is complete without {names}, see the reasons above. Leave out that --format, "
            "or try another version of the runtime."
        )
    path = bundle.directory.path
    if is_run and config.variants == ("fp32",):
        err.print(
            f"For a smaller file, faster on most CPUs: edgetl export {model} --variants int8 --force",
            style="dim",
            soft_wrap=True,
        )
    err.print(
        f"Next: edgetl bench {path}   and   edgetl predict {path} IMAGE",
        style="dim",
        soft_wrap=True,
    )


def _print_bundle(bundle: Bundle) -> None:
    variant = bundle.select_variant("fp32")
    _print_parity(variant.parity)
    for accuracy in (variant.accuracy, variant.test_accuracy):
        if accuracy is not None:
            low, high = accuracy.interval
            out.print(
                f"Accuracy of this file on {accuracy.images} {accuracy.split} "
                f"images: {accuracy.top1:.1%}  (95% interval {low:.1%} to {high:.1%})"
            )
    if variant.accuracy is None:
        out.print("Accuracy: not measured, no labelled validation images.")
    if len(bundle.variants) > 1:
        _print_variants(bundle)
    _print_coverage(bundle)
    _print_confidence(bundle)
    records = {file.file: file for record in bundle.variants for file in record.files}
    size = sum(record.bytes or 0 for record in records.values()) / 1e6
    files = ", ".join(records)
    out.print(
        f"Bundle: {bundle.directory.path}  ({files}, {size:.1f} MB, {len(bundle.labels)} classes)",
        soft_wrap=True,
    )
    if bundle.manifest.web is not None:
        _print_web(bundle.directory.web, bundle.manifest.web)


def _print_coverage(bundle: Bundle) -> None:
    """Print which providers list all operators of the network files for NPUs."""
    variants = [variant for variant in bundle.variants if variant.split is not None]
    if variants:
        out.print("NPUs, by published lists of operators, not run on a device:")
    for variant in variants:
        for line in variant.split.coverage_lines if variant.split else ():
            out.print(f"  {variant.name:<10} {line}", markup=False, soft_wrap=True)


def _print_confidence(bundle: Bundle) -> None:
    """Print calibration, unknown images and prediction sets of the recommended variant.

    The card and the page of the bundle have all variants and intervals.
    """
    from edgetl.core.artifacts.confidence_summary import (
        format_calibration_error,
        name_unknown_kind,
    )

    variant = bundle.manifest.primary_variant
    calibration, unknown = variant.calibration, variant.unknown
    if calibration is None:
        return
    images = pluralize(calibration.images, "validation image")
    out.print(f"Confidence of {variant.name}, from {images}:")
    effect = "a temperature would not help"
    if calibration.temperature != 1:
        after = calibration.after.calibration_error
        effect = f"{after:.3f} with temperature {calibration.temperature:.2f}"
    error = format_calibration_error(calibration.before)
    out.print(f"  calibration error   {error}; {effect}", markup=False, soft_wrap=True)
    if unknown is not None:
        shares = ", ".join(
            f"{format_percent(figures.caught)} of {name_unknown_kind(kind)}"
            for kind, figures in unknown.figures.items()
        )
        accepted = format_percent(unknown.detector.known_share)
        out.print(
            f"  unknown images      {accepted} of known images accepted; caught {shares}",
            soft_wrap=True,
        )
    if variant.prediction_sets:
        levels = ", ".join(
            f"{level.min_probability:.3g} for {100 * level.coverage:g}% coverage"
            for level in variant.prediction_sets
        )
        out.print(f"  prediction sets     classes with at least {levels}", soft_wrap=True)


def _print_parity(parity: ParityRecord) -> None:
    path, network = parity.path, parity.network
    out.print(f"[bold green]Matches PyTorch[/] on {path.images} {path.kind} images:")
    if network is not None:
        out.print(
            f"  network, identical tensors   max |Δlogit| {network.max_abs_diff:.2g}"
            f"  (limit {network.tolerance:g})"
        )
    difference = f"max |Δlogit| {path.max_abs_diff:.2g}  (limit {path.tolerance:g})"
    if path.max_grey_levels is not None:
        difference += f", pixels within {pluralize(path.max_grey_levels, 'grey level')}"
    ties = f" but {pluralize(path.ties, 'tie')}" if path.ties else ""
    out.print(f"  whole path, decoded photos   {difference}, same top-1 on all{ties}")
    maps = parity.activation_maps
    if maps is not None:
        out.print(
            f"  activation maps              max |Δlogit| {maps.max_abs_diff:.2g}"
            f"  (limit {maps.tolerance:.2g}), {pluralize(maps.images, 'image')}"
        )


def _print_web(folder: Path, web: WebRecord) -> None:
    proof = web.proof
    size = sum(record.bytes or 0 for record in web.files) / 1e6
    parity = f"not verified, {proof.reason}"
    if proof.max_logit_difference is not None:
        parity = f"max |Δlogit| {proof.max_logit_difference:.2g} on {proof.images} golden images"
    out.print(
        f"Page: {folder}  ({web.variant}, {web.runtime}, {size:.1f} MB; {parity})",
        soft_wrap=True,
    )
    out.print(
        f"  python3 -m http.server -d {folder}   and open http://localhost:8000",
        soft_wrap=True,
    )


def _print_variants(bundle: Bundle) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    tested = any(variant.test_accuracy is not None for variant in bundle.variants)
    accuracy_headings = ["validation top-1", "test top-1"] if tested else ["top-1"]
    headings = ["MB", "p50 ms", "speed-up [95%]", *accuracy_headings, "drop", "flips"]
    table.add_column("variant")
    for heading in (*headings, "max |Δlogit|"):
        table.add_column(heading, justify="right")
    for variant in bundle.variants:
        is_recommended = variant.name == bundle.manifest.recommended
        table.add_row(*_variant_cells(variant, is_recommended, tested))
    out.print(table)
    for name, reason in bundle.manifest.rejection_reasons.items():
        out.print(f"{name} {reason}.", markup=False, soft_wrap=True)
    for name, reason in bundle.manifest.failed_formats.items():
        out.print(f"{name} is left out: {reason}", style="red", markup=False, soft_wrap=True)
    for variant in bundle.variants:
        for note in _variant_notes(variant):
            out.print(f"{variant.name}: {note}", markup=False, soft_wrap=True)


def _variant_cells(variant: VariantRecord, is_recommended: bool, tested: bool) -> tuple[str, ...]:
    from edgetl.export.variant_selection import accuracy_drop

    accuracy, test = variant.accuracy, variant.test_accuracy
    test_cells = [MISSING_VALUE if test is None else f"{test.top1:.1%}"] if tested else []
    return (
        f"{variant.name} [bold green]recommended[/]" if is_recommended else variant.name,
        f"{variant.total_bytes / 1e6:.1f}",
        MISSING_VALUE if variant.p50_ms is None else f"{variant.p50_ms:.2f}",
        _format_speedup(variant.latency),
        MISSING_VALUE if accuracy is None else f"{accuracy.top1:.1%}",
        *test_cells,
        f"{accuracy_drop(variant):.1f}",
        MISSING_VALUE if accuracy is None else str(accuracy.flips),
        f"{variant.parity.path.max_abs_diff:.2g}",
    )


def _format_speedup(latency: LatencyRecord | None) -> str:
    if latency is None or latency.speedup is None or latency.interval is None:
        return ""
    low, high = latency.interval
    return f"{latency.speedup:.2f} [{low:.2f}, {high:.2f}]"


def _variant_notes(variant: VariantRecord) -> Iterator[str]:
    report, search = variant.report, variant.search
    if report.method:
        yield f"{report.method}."
    if search is not None and search.worst_layers:
        yield f"the layers with the largest error are {', '.join(search.worst_layers)}."
    if report.divergence:
        yield report.divergence
    if report.slow_because is not None and report.slow_because.summary:
        yield f"most of its time is spent in {report.slow_because.summary}."
    if search is not None and not search.vnni and not variant.is_faster:
        yield (
            "this CPU has no VNNI, so int8 gains little here. Run `edgetl bench` on the target "
            "device."
        )
