"""What the best weights answer on each validation image: runs can be compared image by image, and mistakes looked up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgetl.core.files import write_csv
from edgetl.core.layout import RunDirectory
from edgetl.train.evaluation import Evaluation
from edgetl.train.splits import SplitRow


def write_predictions(
    run: RunDirectory, data: Path, rows: Sequence[SplitRow], val: Evaluation, labels: Sequence[str]
) -> None:
    """Write predictions.csv: path as in split.csv, label, predicted class, its probability, and the label's."""
    probabilities = val.probabilities
    table = [
        (
            row.path.relative_to(data).as_posix(),
            row.label,
            labels[predicted],
            f"{float(own[predicted]):.6f}",
            f"{float(own[target]):.6f}",
        )
        for row, own, predicted, target in zip(
            rows, probabilities, val.predicted.tolist(), val.targets.tolist(), strict=True
        )
    ]
    write_csv(
        run.predictions, ("path", "label", "predicted", "probability", "label_probability"), table
    )
