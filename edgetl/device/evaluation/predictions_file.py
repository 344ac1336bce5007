"""CSV file of all predictions, written while the images are classified."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgetl.core.artifacts.evaluation import UnscoredImage
from edgetl.core.config.evaluate import EvaluateConfig
from edgetl.core.errors import BenchError
from edgetl.core.files import CsvWriter

_COLUMNS = (
    "path",
    "label",
    "variant",
    "predicted",
    "probability",
    "label_probability",
    "unknown_score",
    "error",
)


class PredictionsFile:
    """Writer of a row for each image and variant, or for an image that could not be read."""

    def __init__(self, writer: CsvWriter | None, labels: Sequence[str]) -> None:
        """Create the writer.

        Args:
            writer: Writer of the table; None writes nothing.
            labels: Names of the classes.
        """
        self._writer = writer
        self._labels = labels

    def write_prediction(
        self,
        path: str,
        label: int | None,
        variant: str,
        predicted: int,
        probability: float,
        label_probability: float | None,
        unknown_score: float | None,
    ) -> None:
        """Write the prediction of a variant; without a label for images of no known class."""
        if self._writer is not None:
            cells = (
                path,
                "" if label is None else self._labels[label],
                variant,
                self._labels[predicted],
                f"{probability:.6f}",
                "" if label_probability is None else f"{label_probability:.6f}",
                "" if unknown_score is None else f"{unknown_score:.6g}",
                "",
            )
            self._writer.write_row(cells)

    def write_error(self, image: UnscoredImage, label: int | None) -> None:
        """Write an image that could not be read."""
        if self._writer is not None:
            name = "" if label is None else self._labels[label]
            self._writer.write_row((image.path, name, "", "", "", "", "", image.reason))


@contextmanager
def open_predictions_file(path: Path | None, labels: Sequence[str]) -> Iterator[PredictionsFile]:
    """Create the file, or yield a writer that writes nothing if `path` is None.

    Raises:
        BenchError: The file exists or cannot be written.
    """
    if path is None:
        yield PredictionsFile(None, labels)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("x", encoding="utf-8", newline="")
    except OSError as cause:
        raise BenchError(
            f"Cannot write the predictions to {path} ({cause.strerror or cause}). "
            "Choose another {predictions}.",
            EvaluateConfig,
        ) from cause
    with stream:
        yield PredictionsFile(CsvWriter(stream, _COLUMNS), labels)
