"""`edgetl predict`: label image files, folders and patterns."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from edgetl.core.artifacts.confidence import (
    UNKNOWN_LABEL,
    CoverageLevel,
    describe_unknown,
    is_unknown_score,
    select_coverage_level,
)
from edgetl.core.errors import ConfigError, DataError, DecodeError
from edgetl.core.paths import StrPath
from edgetl.device.runtime.classifier import Classifier, open_verified_classifier
from edgetl.device.runtime.explanation import Explanation
from edgetl.device.runtime.images import IMAGE_SUFFIXES, list_images, load_image
from edgetl.device.runtime.session_choice import SessionOptions


@dataclass(frozen=True)
class Prediction:
    """Labels of one image file, or the error that prevented reading it."""

    path: Path
    """The file; the argument itself if it matches no file."""
    top_labels: tuple[tuple[str, float], ...]
    """(label, probability), best first; empty after an error."""
    error: str | None = None
    """Problem with the file and the next step; None if it was classified."""
    unknown_score: float | None = None
    """Dissimilarity to the known images: 0 for the median one, above 1 for an unknown image. None
    if the model has no such output."""
    label_set: tuple[str, ...] | None = None
    """Prediction set of the requested coverage, most probable label first; it may be empty. None if
    no coverage was requested."""
    explanation: Explanation | None = field(default=None, compare=False)
    """Evidence for the best label; None unless requested, and after an error."""

    def __repr__(self) -> str:
        if self.error is not None:
            return f"Prediction({str(self.path)!r}, error={self.error!r})"
        label, probability = self.top_labels[0]
        if self.is_unknown:
            label = describe_unknown(label)
        return f"Prediction({str(self.path)!r}, {label!r}, {probability:.4f})"

    @property
    def is_unknown(self) -> bool:
        """Whether the image resembles no class. A class may itself be called `unknown`."""
        return is_unknown_score(self.unknown_score)

    @property
    def label(self) -> str | None:
        """The most probable label, or `unknown` if `is_unknown`; None after an error."""
        if self.is_unknown:
            return UNKNOWN_LABEL
        return self.top_labels[0][0] if self.top_labels else None


def predict(
    bundle: StrPath,
    images: StrPath | Iterable[StrPath],
    top_k: int = 5,
    variant: str | None = None,
    provider: str | None = None,
    threads: int | None = None,
    coverage: float | None = None,
    explain: bool = False,
    runtime: str | None = None,
    use_recommendation: bool = True,
    notify: Callable[[str], None] | None = None,
) -> Iterator[Prediction]:
    """Classify image files with a bundle, after checking it on its golden images on this device.

    The checks are made by the call; each image is decoded and classified when its prediction is
    requested. An image that cannot be read, or an argument that matches no file, yields a prediction
    with its error, and the others continue.

    Args:
        bundle: a bundle, a run with a bundle, or an ONNX file written by edgetl, which has no
            golden images and is not checked.
        images: files, folders (searched recursively) and shell patterns such as `photos/*.jpg`.
            Folders and patterns match only files with an image suffix; every file is classified
            once.
        top_k: number of labels per image, at least 1.
        variant: variant of the bundle; None uses the recommended one.
        provider: execution provider (cpu, cuda, tensorrt, ...), without silent fallback; None is
            the CPU.
        threads: intra-op threads; None uses all available cores.
        coverage: share of new images whose prediction set must contain the true label, one of the
            levels of the export; None omits the sets.
        explain: also explain the best label of each image. It takes more time, and the model must
            have been exported with `explain`.
        runtime: a name in `edgetl.core.runtimes.RUNTIMES`; None uses the one that the variant was
            written for.
        use_recommendation: without variant, provider, threads and runtime, use those that
            `edgetl bench --save-recommendation` saved in the bundle, if they apply here.
        notify: called with the recommendation that was used, or why it was not; None logs it.

    Returns:
        An iterator over the predictions, in the order of the arguments.

    Raises:
        ConfigError: `top_k` is less than 1, the model has no prediction sets of this coverage, or
            the runtime is unknown.
        DataError: no argument matches a file.
        BundleError: the bundle is missing or altered, its outputs are wrong on this device, or it
            lacks the activation maps for `explain`.
        ProviderError: the provider is unknown, did not start, or did not take all nodes.
        MissingPackageError: the runtime is not installed.
    """
    if top_k < 1:
        raise ConfigError(f"top_k must be >= 1, got {top_k}.")
    entries = _expand_paths([images] if isinstance(images, str | os.PathLike) else images)
    options = SessionOptions(variant, provider, threads, runtime, use_recommendation)
    classifier = open_verified_classifier(bundle, options, explain, notify)
    level = None
    if coverage is not None:
        level = select_coverage_level(classifier.prediction_sets, coverage)
    return (
        entry if isinstance(entry, Prediction) else _predict_file(classifier, entry, top_k, level)
        for entry in entries
    )


def _expand_paths(arguments: Iterable[StrPath]) -> list[Path | Prediction]:
    """Expand files, folders and patterns to unique files, or to an error for an unmatched argument.

    Raises:
        DataError: no argument matches a file.
    """
    entries: dict[Path, Path | Prediction] = {}
    for argument in arguments:
        path = Path(argument)
        try:
            entries |= {match: match for match in _list_matches(path) if match not in entries}
        except DataError as cause:
            entries[path] = Prediction(path, (), str(cause))
    errors = [entry.error for entry in entries.values() if isinstance(entry, Prediction)]
    if len(errors) == len(entries):
        raise DataError("\n".join(map(str, errors)) or "No images to classify.")
    return list(entries.values())


def _list_matches(path: Path) -> list[Path]:
    if path.is_dir():
        matches = list_images(path)
        if not matches:
            suffixes = " ".join(sorted(IMAGE_SUFFIXES))
            raise DataError(f"No images in the folder {path}. Known suffixes: {suffixes}.")
        return matches
    if path.exists():
        return [path]
    # Path.glob does not support absolute patterns.
    names = glob.glob(str(path), recursive=True)  # noqa: PTH207
    matches = sorted(match for match in map(Path, names) if match.is_file())
    matches = [match for match in matches if match.suffix.lower() in IMAGE_SUFFIXES]
    if not matches:
        raise DataError(
            f"{path} not found. Give image files, folders or patterns such as 'photos/*.jpg'."
        )
    return matches


def _predict_file(
    classifier: Classifier, path: Path, top_k: int, level: CoverageLevel | None
) -> Prediction:
    try:
        image = load_image(path)
    except DecodeError as error:
        return Prediction(path, (), str(error))
    try:
        outputs = classifier.run(classifier.prepare_input(image))
    except DecodeError as error:
        return Prediction(path, (), f"{path}: {error}")
    probabilities = outputs.probabilities[0]
    ranking = [
        (classifier.labels[index], float(probabilities[index]))
        for index in probabilities.argsort()[::-1]
    ]
    scores = outputs.unknown_scores
    label_set = None
    if level is not None:
        label_set = tuple(
            label for label, probability in ranking if probability >= level.min_probability
        )
    return Prediction(
        path,
        tuple(ranking[:top_k]),
        unknown_score=None if scores is None else float(scores[0]),
        label_set=label_set,
        explanation=classifier.explain(image, outputs) if classifier.has_activation_maps else None,
    )
