"""`edgetl predict`: label image files, folders and patterns."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgetl.core.errors import DataError, DecodeError
from edgetl.device.runtime.classifier import Classifier
from edgetl.device.runtime.images import IMAGE_SUFFIXES, list_images, load_image


@dataclass(frozen=True)
class Prediction:
    """Labels of one image file, or the error that prevented reading it."""

    path: Path
    top_labels: list[tuple[str, float]]
    """(label, probability), best first; empty if the file could not be read."""
    error: str | None = None


def expand_paths(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Expand files, folders and patterns to unique files, with a message per unmatched argument.

    Files may have any name. Folders, searched recursively, and shell patterns match only files with
    an image suffix.

    Raises:
        DataError: no argument matches a file.
    """
    paths: dict[Path, None] = {}
    problems = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            try:
                matches = list_images(path)
            except DataError as cause:
                problems.append(str(cause))
                continue
            if not matches:
                suffixes = " ".join(sorted(IMAGE_SUFFIXES))
                problems.append(f"No images in the folder {path}. Known suffixes: {suffixes}.")
        elif path.exists():
            matches = [path]
        else:
            # Path.glob does not support absolute patterns.
            names = glob.glob(argument, recursive=True)  # noqa: PTH207
            matches = sorted(match for match in map(Path, names) if match.is_file())
            matches = [match for match in matches if match.suffix.lower() in IMAGE_SUFFIXES]
            if not matches:
                problems.append(
                    f"{argument} not found. "
                    "Give image files, folders or patterns such as 'photos/*.jpg'."
                )
        paths.update(dict.fromkeys(matches))
    if not paths:
        raise DataError("\n".join(problems))
    return list(paths), problems


def predict(classifier: Classifier, paths: Sequence[Path], top_k: int = 5) -> Iterator[Prediction]:
    """Yield a prediction for each path; a file that cannot be read yields its error."""
    for path in paths:
        try:
            image = load_image(path)
        except DecodeError as error:
            yield Prediction(path, [], str(error))
            continue
        try:
            probabilities = classifier.classify(image)
        except DecodeError as error:
            yield Prediction(path, [], f"{path}: {error}")
            continue
        top_indices = probabilities.argsort()[::-1][:top_k]
        top_labels = [
            (classifier.labels[index], float(probabilities[index])) for index in top_indices
        ]
        yield Prediction(path, top_labels)
