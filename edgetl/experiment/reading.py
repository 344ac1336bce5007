"""A finished run directory as the experiment's figures."""

from __future__ import annotations

from typing import Any

from edgetl.core.comparing import PlannedRun
from edgetl.core.errors import DataError, RunError
from edgetl.core.files import MAX_JSON_BYTES, parse_json, read_csv, read_json, read_regular_file
from edgetl.core.layout import RunDirectory
from edgetl.core.runs import Run
from edgetl.core.typed_json import parse_as


def is_finished(planned: PlannedRun) -> bool:
    """Whether its run directory holds a run that ended."""
    return (
        planned.config.output is not None and RunDirectory(planned.config.output).metrics.is_file()
    )


def read_run(planned: PlannedRun) -> tuple[Run, dict[str, Any]]:
    """The run's figures, and its config.json.

    Raises:
        RunError: a file is missing or broken.
        DataError: the run had no validation images.
    """
    assert planned.config.output is not None
    run = RunDirectory(planned.config.output)
    metrics, config = (
        read_json(run.metrics, RunError, "The run's metrics"),
        read_json(run.config, RunError, "The run's configuration"),
    )
    if metrics.get("val") is None:
        raise DataError(
            "The data has no validation images, and strategies are compared on those. Add images, or a val/ folder."
        )
    try:
        epochs = [
            parse_json(line) for line in read_regular_file(run.history, MAX_JSON_BYTES).splitlines()
        ]
        answers = [(row["label"], row["predicted"]) for row in read_csv(run.predictions)]
        if not answers or not epochs:
            raise ValueError("no epochs, or no predictions")
        number = {label: index for index, label in enumerate(metrics["classes"])}
        confusion = [[0] * len(number) for _ in number]
        for label, predicted in answers:
            confusion[number[label]][number[predicted]] += 1
        figures = {
            **identity(planned),
            "seconds": metrics["seconds"]["total"],
            "train_images": metrics["train"]["images"],
            "train_accuracy": metrics["train"]["accuracy"],
            "macro_f1": metrics["val"]["macro_f1"],
            "best_epoch": metrics["best_epoch"],
            "trainable": metrics["parameters"]["trainable"],
            "parameters": metrics["parameters"]["total"],
            "peak_memory_bytes": metrics["peak_memory_bytes"],
            "peak_gpu_memory_bytes": metrics["peak_gpu_memory_bytes"],
            "device": metrics["device"],
            "precision": metrics["precision"],
            "weights": metrics["weights"]["source"],
            "epochs": [
                {
                    name: epoch[name]
                    for name in ("phase", "elapsed", "train_accuracy", "val_accuracy")
                }
                for epoch in epochs
            ],
            "correct": "".join("1" if label == predicted else "0" for label, predicted in answers),
            "confusion": confusion,
        }
        return parse_as(Run, figures, "its figures"), config
    except (OSError, KeyError, IndexError, TypeError, ValueError) as cause:
        raise RunError(
            f"The run {run.path} is broken: {cause!r}. Remove it, and `edgetl compare` trains it again."
        ) from cause


def identity(planned: PlannedRun) -> dict[str, Any]:
    """What a run is called and what it is, before anything is known of its end."""
    return {
        "name": planned.name,
        "row": planned.row,
        "architecture": planned.network.architecture,
        "image_size": planned.network.image_size,
        "strategy": planned.strategy,
        "seed": planned.seed,
        "folder": f"runs/{planned.name}",
    }
