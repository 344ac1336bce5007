"""`edgetl predict`."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgetl.cli.console import err, is_stdout_open, out, print_json
from edgetl.core.artifacts.confidence import describe_unknown
from edgetl.core.files import SCHEMA
from edgetl.core.formatting import pluralize
from edgetl.core.runtimes import RUNTIMES
from edgetl.core.untrusted_text import escape_control_characters, escape_csv_cell

if TYPE_CHECKING:
    from rich.text import Text

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
    runtime: Annotated[
        str | None,
        typer.Option(
            help=f"Runtime: {', '.join(RUNTIMES)}.",
            show_default="the variant's own",
        ),
    ] = None,
    provider: Annotated[
        str | None,
        typer.Option(
            help="Execution provider: cpu, cuda, tensorrt, nv_tensorrt_rtx, ...; without silent "
            "fallback.",
            show_default="cpu",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Intra-op threads.", show_default="available cores"),
    ] = None,
    no_recommendation: Annotated[
        bool,
        typer.Option(
            "--no-recommendation",
            help="Ignore what `edgetl bench --save-recommendation` saved in the bundle. It is used "
            "only without --variant, --runtime, --provider and --threads.",
        ),
    ] = False,
    coverage: Annotated[
        float | None,
        typer.Option(
            help="Also print each image's prediction set: the labels among which the true one is "
            "with this probability, for example 0.95."
        ),
    ] = None,
    explain: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write a picture of each image to this folder that shows where the model finds "
            "evidence for its best label. Requires a bundle of `edgetl export --explain`.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object.")
    ] = False,
    as_csv: Annotated[
        bool,
        typer.Option(
            "--csv",
            help="Print CSV: path, rank, label, probability, error, unknown_score, is_unknown, "
            "label_set.",
        ),
    ] = False,
) -> None:
    """Classify images with a bundle. Does not require PyTorch.

    The model is checked on the bundle's golden images first; if they fail on this device, nothing
    is classified. Images that resemble no class are labeled unknown, if the model detects them.
    Images that cannot be read are reported and skipped; the exit code is then 1.
    """
    from edgetl.core.errors import ConfigError, DataError

    if as_json and as_csv:
        raise ConfigError("--json cannot be combined with --csv. Remove one of them.")
    from edgetl.device.predict import predict as predict_images

    predictions = predict_images(
        bundle,
        images,
        top_k,
        variant,
        provider,
        threads,
        coverage,
        explain is not None,
        runtime,
        not no_recommendation,
        lambda note: err.print(note, style="dim", markup=False, soft_wrap=True),
    )
    pictures: dict[Path, Path] = {}
    if explain is not None:
        predictions = _write_explanations(predictions, explain, pictures)
    if as_csv:
        printed = _print_csv(predictions)
    elif as_json:
        printed = _print_json(predictions, pictures)
    else:
        printed = _print_table(predictions, coverage)
    errors = [prediction.error for prediction in printed if prediction.error]
    if errors:
        for error in errors:
            err.print(error, style="red", markup=False, soft_wrap=True)
        raise DataError(
            f"Cannot read {len(errors)} of the images; {len(printed) - len(errors)} are classified "
            "above."
        )


def _write_explanations(
    predictions: Iterable[Prediction], folder: Path, pictures: dict[Path, Path]
) -> Iterator[Prediction]:
    """Write the explanations as files that do not exist yet, and drop them from memory.

    Args:
        predictions: predictions with explanations.
        folder: folder of the files.
        pictures: filled with the file of each image.
    """
    from dataclasses import replace

    from edgetl.core.paths import find_free_path

    for prediction in predictions:
        if prediction.explanation is not None:
            picture = find_free_path(folder, prediction.path.stem, ".png")
            prediction.explanation.save(picture)
            pictures[prediction.path] = picture
        yield replace(prediction, explanation=None)
    err.print(f"Explanations: {folder}  ({pluralize(len(pictures), 'picture')})", soft_wrap=True)


def _print_table(predictions: Iterable[Prediction], coverage: float | None) -> list[Prediction]:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("image", overflow="fold")
    table.add_column("label", overflow="fold")
    table.add_column("probability", justify="right")
    printed = list(predictions)
    has_scores = any(prediction.unknown_score is not None for prediction in printed)
    if has_scores:
        table.add_column("unknown score", justify="right")
    if coverage is not None:
        table.add_column(f"{coverage:.4g} prediction set", overflow="fold")
    for prediction in printed:
        for rank, (label, probability) in enumerate(prediction.top_labels):
            if rank:
                table.add_row("", Text(label), f"{probability:.4f}")
                continue
            name = Text(str(prediction.path))
            cells = [name, _format_best_label(prediction), Text(f"{probability:.4f}")]
            if has_scores:
                cells.append(Text(f"{prediction.unknown_score:.2f}"))
            if coverage is not None:
                cells.append(Text(_format_label_set(prediction)))
            table.add_row(*cells)
    if table.row_count:
        out.print(table)
    return printed


def _format_best_label(prediction: Prediction) -> Text:
    from rich.text import Text

    best_label = prediction.top_labels[0][0]
    if prediction.is_unknown:
        return Text(describe_unknown(best_label), style="bold yellow")
    return Text(best_label, style="bold green")


def _format_label_set(prediction: Prediction) -> str:
    return ", ".join(prediction.label_set or ()) or "empty: no label is probable enough"


def _print_json(
    predictions: Iterable[Prediction], pictures: Mapping[Path, Path]
) -> list[Prediction]:
    printed = list(predictions)
    content = [
        {
            "path": str(prediction.path),
            "label": prediction.label,
            "top": [
                {"label": label, "probability": probability}
                for label, probability in prediction.top_labels
            ],
            "unknown_score": prediction.unknown_score,
            "is_unknown": prediction.is_unknown,
            "label_set": prediction.label_set,
            **_picture_entry(prediction, pictures),
            "error": prediction.error,
        }
        for prediction in printed
    ]
    print_json({"schema": SCHEMA, "kind": "predictions", "images": content}, indent=2)
    return printed


def _picture_entry(prediction: Prediction, pictures: Mapping[Path, Path]) -> dict[str, str]:
    picture = pictures.get(prediction.path)
    return {} if picture is None else {"explanation": str(picture)}


def _format_csv_cell(content: Path | str) -> str:
    return escape_csv_cell(escape_control_characters(str(content)))


def _csv_confidence_cells(prediction: Prediction) -> list[str]:
    """Return the cells unknown_score, is_unknown and label_set, empty where they do not apply."""
    score = prediction.unknown_score
    labels = prediction.label_set
    return [
        "" if score is None else f"{score:.6f}",
        "" if score is None else str(prediction.is_unknown).lower(),
        "" if labels is None else _format_csv_cell(json.dumps(labels, ensure_ascii=False)),
    ]


def _print_csv(predictions: Iterable[Prediction]) -> list[Prediction]:
    """Print CSV row by row, so that long lists show progress and survive an interruption."""
    writer = csv.writer(sys.stdout)
    writer.writerow(
        [
            "path",
            "rank",
            "label",
            "probability",
            "error",
            "unknown_score",
            "is_unknown",
            "label_set",
        ]
    )
    printed = []
    for prediction in predictions:
        confidence = _csv_confidence_cells(prediction)
        for rank, (label, probability) in enumerate(prediction.top_labels, start=1):
            writer.writerow(
                [
                    _format_csv_cell(prediction.path),
                    rank,
                    _format_csv_cell(label),
                    f"{probability:.6f}",
                    "",
                    *confidence,
                ]
            )
        if prediction.error:
            writer.writerow(
                [
                    _format_csv_cell(prediction.path),
                    "",
                    "",
                    "",
                    _format_csv_cell(prediction.error),
                    *confidence,
                ]
            )
        sys.stdout.flush()
        printed.append(prediction)
        if not is_stdout_open():
            break
    return printed
