"""CSV file of all predictions, written while the images are classified."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgetl.core.artifacts.evaluation import UnscoredImage
from edgetl.core.config.evaluate import EvaluateConfig
from edgetl.core.errors import BenchError
from edgetl.core.files import CsvWriter
from edgetl.device.evaluation.scores import ImageScore

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

    def write_score(self, path: str, label: int, variant: str, score: ImageScore) -> None:
        """Write the prediction of a variant for a labeled image."""
        unknown = "" if score.unknown_score is None else f"{score.unknown_score:.6g}"
        self._write(
            path,
            self._labels[label],
            variant,
            self._labels[score.predicted],
            f"{score.confidence:.6f}",
            f"{score.label_probability:.6f}",
            unknown,
            "",
        )

    def write_unlabeled(
        self, path: str, variant: str, predicted: int, probability: float, unknown_score: float
    ) -> None:
        """Write the prediction of a variant for an image of no known class."""
        name = self._labels[predicted]
        self._write(path, "", variant, name, f"{probability:.6f}", "", f"{unknown_score:.6g}", "")

    def write_error(self, image: UnscoredImage, label: int | None) -> None:
        """Write an image that could not be read."""
        name = "" if label is None else self._labels[label]
        self._write(image.path, name, "", "", "", "", "", image.reason)

    def _write(self, *cells: str) -> None:
        if self._writer is not None:
            self._writer.write_row(cells)


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
