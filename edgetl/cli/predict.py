"""`edgetl predict`."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgetl.cli.console import err, is_stdout_open, out, print_json
from edgetl.core.files import SCHEMA
from edgetl.core.untrusted_text import escape_control_characters, escape_csv_cell

if TYPE_CHECKING:
    from edgetl.device.predict import Prediction


def predict(
    bundle: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE",
            help="Bundle, run directory with a bundle, or an ONNX file written by edgetl.",
        ),
    ],
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE...", help="Image files, folders or glob patterns.")
    ],
    top_k: Annotated[
        int, typer.Option("--top-k", "-k", min=1, help="Number of labels per image.")
    ] = 5,
    variant: Annotated[
        str | None,
        typer.Option(help="Variant of the bundle.", show_default="the recommended one"),
    ] = None,
    provider: Annotated[
        str,
        typer.Option(
            help="Execution provider: cpu, cuda, tensorrt, nv_tensorrt_rtx, ...; without silent "
            "fallback."
        ),
    ] = "cpu",
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Intra-op threads.", show_default="available cores"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object.")
    ] = False,
    as_csv: Annotated[
        bool,
        typer.Option("--csv", help="Print CSV: path, rank, label, probability, error."),
    ] = False,
) -> None:
    """Classify images with a bundle. Does not require PyTorch.

    The model is checked on the bundle's golden images first; if they fail on this device, nothing
    is classified. Images that cannot be read are reported and skipped; the exit code is then 1.
    """
    from edgetl.core.errors import ConfigError, DataError

    if as_json and as_csv:
        raise ConfigError("--json cannot be combined with --csv. Remove one of them.")
    from edgetl.device.predict import predict as predict_images

    predictions = predict_images(bundle, images, top_k, variant, provider, threads)
    if as_csv:
        printed = _print_csv(predictions)
    elif as_json:
        printed = _print_json(predictions)
    else:
        printed = _print_table(predictions)
    errors = [prediction.error for prediction in printed if prediction.error]
    if errors:
        for error in errors:
            err.print(error, style="red", markup=False, soft_wrap=True)
        raise DataError(
            f"Cannot read {len(errors)} of the images; {len(printed) - len(errors)} are classified "
            "above."
        )


def _print_table(predictions: Iterable[Prediction]) -> list[Prediction]:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("image", overflow="fold")
    table.add_column("label", overflow="fold")
    table.add_column("probability", justify="right")
    printed = list(predictions)
    for prediction in printed:
        for rank, (label, probability) in enumerate(prediction.top_labels):
            name = Text("" if rank else str(prediction.path))
            table.add_row(
                name, Text(label, style="" if rank else "bold green"), f"{probability:.4f}"
            )
    if table.row_count:
        out.print(table)
    return printed


def _print_json(predictions: Iterable[Prediction]) -> list[Prediction]:
    printed = list(predictions)
    content = [
        {
            "path": str(prediction.path),
            "top": [
                {"label": label, "probability": probability}
                for label, probability in prediction.top_labels
            ],
            "error": prediction.error,
        }
        for prediction in printed
    ]
    print_json({"schema": SCHEMA, "kind": "predictions", "images": content}, indent=2)
    return printed


def _format_csv_cell(content: Path | str) -> str:
    return escape_csv_cell(escape_control_characters(str(content)))


def _print_csv(predictions: Iterable[Prediction]) -> list[Prediction]:
    """Print CSV row by row, so that long lists show progress and survive an interruption."""
    writer = csv.writer(sys.stdout)
    writer.writerow(["path", "rank", "label", "probability", "error"])
    printed = []
    for prediction in predictions:
        for rank, (label, probability) in enumerate(prediction.top_labels, start=1):
            writer.writerow(
                [
                    _format_csv_cell(prediction.path),
                    rank,
                    _format_csv_cell(label),
                    f"{probability:.6f}",
                    "",
                ]
            )
        if prediction.error:
            writer.writerow(
                [_format_csv_cell(prediction.path), "", "", "", _format_csv_cell(prediction.error)]
            )
        sys.stdout.flush()
        printed.append(prediction)
        if not is_stdout_open():
            break
    return printed
