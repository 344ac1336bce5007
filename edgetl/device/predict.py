"""`edgetl predict`: files, folders and patterns to labels."""

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
    """What the model says of one file."""

    path: Path
    top_labels: list[tuple[str, float]]
    """(label, probability), best first; empty where the file could not be read."""
    error: str | None = None


def expand_paths(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Files named by `arguments`, each once, and a message for every argument that names none.

    Files are taken as they are; of folders (all below them) and shell patterns only what is named like an image.

    Raises:
        DataError: no argument names a file.
    """
    found: dict[Path, None] = {}
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
                problems.append(
                    f"No images in the folder {path}. Known endings: {' '.join(sorted(IMAGE_SUFFIXES))}."
                )
        elif path.exists():
            matches = [path]
        else:
            # glob, not Path.glob: a pattern may be absolute.
            names = glob.glob(argument, recursive=True)  # noqa: PTH207
            matches = sorted(match for match in map(Path, names) if match.is_file())
            matches = [match for match in matches if match.suffix.lower() in IMAGE_SUFFIXES]
            if not matches:
                problems.append(
                    f"Nothing at {argument}. Give image files, folders or patterns such as 'photos/*.jpg'."
                )
        found.update(dict.fromkeys(matches))
    if not found:
        raise DataError("\n".join(problems))
    return list(found), problems


def predict(classifier: Classifier, paths: Sequence[Path], top_k: int = 5) -> Iterator[Prediction]:
    """Label `paths` one by one; a file that cannot be read yields its error and the rest is still done."""
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
        best = probabilities.argsort()[::-1][:top_k]
        yield Prediction(
            path, [(classifier.labels[index], float(probabilities[index])) for index in best]
        )
