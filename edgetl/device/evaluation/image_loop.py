"""Classification of all images by all variants: each image is decoded once."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edgetl.core.artifacts.evaluation import UnscoredImage
from edgetl.core.config.evaluate import EvaluateConfig
from edgetl.core.errors import BundleError, DataError, DecodeError
from edgetl.core.formatting import pluralize
from edgetl.core.progress import ProgressCallback
from edgetl.device.evaluation.corruption_counts import Corruption, CorruptionCounts
from edgetl.device.evaluation.corruptions import corrupt
from edgetl.device.evaluation.images import ImageList
from edgetl.device.evaluation.metrics import Floats
from edgetl.device.evaluation.predictions_file import PredictionsFile
from edgetl.device.evaluation.scores import ImageScore, ScoreTable, score_image
from edgetl.device.runtime.classifier import Classifier
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import resize_around_crop

T = TypeVar("T")
CorruptedScore = tuple[str, Corruption, ImageScore]
"""Variant, corruption and score."""
ModelInput = NDArray[np.uint8] | NDArray[np.float32]


@dataclass(frozen=True)
class ScoredImages:
    """Scores of the labeled images."""

    tables: dict[str, ScoreTable]
    """By variant."""
    rows: list[int]
    """Indices of the images that were scored."""
    unscored: tuple[UnscoredImage, ...]
    corruptions: dict[str, CorruptionCounts]
    """By variant."""


@dataclass(frozen=True)
class ScoredUnknown:
    """Scores of the images of no known class."""

    unknown_scores: dict[str, Floats]
    """By variant, only those with the output `unknown_score`."""
    images: int
    """Images that were scored."""
    unscored: tuple[UnscoredImage, ...]


def score_images(
    classifiers: Mapping[str, Classifier],
    images: ImageList,
    corruptions: Sequence[Corruption],
    workers: int,
    predictions: PredictionsFile,
    report: ProgressCallback,
) -> ScoredImages:
    """Classify the labeled images.

    Args:
        classifiers: Sessions by variant.
        images: Images with their classes.
        corruptions: Corruptions to classify the images after as well.
        workers: Number of images that are classified at the same time.
        predictions: Receives the predictions.
        report: Called after each image.

    Raises:
        DataError: No image can be read.
        BundleError: The outputs of a variant are not finite.
        ProviderError: See `Classifier.run`.
    """
    total = len(images.paths)
    tables = {
        name: ScoreTable(total, classifier.prediction_sets, classifier.unknown is not None)
        for name, classifier in classifiers.items()
    }
    corrupted = {name: CorruptionCounts(corruptions) for name in classifiers}
    labels: list[int] = images.labels.tolist()

    def score(index: int) -> tuple[dict[str, ImageScore], list[CorruptedScore]]:
        pixels = _load_image(images.paths[index])
        outputs = _classify(classifiers, pixels, images.paths[index])
        scores = {
            name: score_image(probabilities, labels[index], tables[name].levels, unknown_score)
            for name, probabilities, unknown_score in outputs
        }
        return scores, list(
            _score_corruptions(classifiers, pixels, labels[index], index, corruptions)
        )

    rows: list[int] = []
    unscored: list[UnscoredImage] = []
    for index, result in enumerate(_map_in_order(score, images.paths, workers)):
        path, label = images.paths[index], labels[index]
        if isinstance(result, UnscoredImage):
            unscored.append(result)
            predictions.write_error(result, label)
        else:
            rows.append(index)
            scores, corrupted_scores = result
            for name, image_score in scores.items():
                tables[name].add(label, image_score)
                predictions.write_score(path, label, name, image_score)
            for name, corruption, image_score in corrupted_scores:
                corrupted[name].add(corruption, image_score, label)
        report("Evaluating", index + 1, total)
    if not rows:
        raise _make_unreadable_error(images.description, unscored)
    return ScoredImages(tables, rows, tuple(unscored), corrupted)


def _score_corruptions(
    classifiers: Mapping[str, Classifier],
    pixels: NDArray[np.uint8],
    label: int,
    seed: int,
    corruptions: Sequence[Corruption],
) -> Iterator[CorruptedScore]:
    """Classify an image after each corruption, at the resolution of the network.

    Corrupted at full resolution, most of the effect would be lost in the resize.
    """
    if not corruptions:
        return
    preprocessing = next(iter(classifiers.values())).preprocessing
    square = resize_around_crop(pixels, preprocessing)
    for corruption in corruptions:
        kind, severity = corruption
        source = f"an image with {kind} of severity {severity}"
        outputs = _classify(classifiers, corrupt(square, kind, severity, seed), source)
        for name, probabilities, unknown_score in outputs:
            yield name, corruption, score_image(probabilities, label, (), unknown_score)


def score_unknown_images(
    classifiers: Mapping[str, Classifier],
    paths: Sequence[str],
    workers: int,
    predictions: PredictionsFile,
    report: ProgressCallback,
) -> ScoredUnknown:
    """Compute the unknown scores of images of no known class, by the variants that have them.

    Raises:
        DataError: No image can be read.
        BundleError, ProviderError: See `score_images`.
    """
    detectors = {
        name: classifier
        for name, classifier in classifiers.items()
        if classifier.unknown is not None
    }

    def score(index: int) -> list[tuple[str, int, float, float]]:
        outputs = _classify(detectors, _load_image(paths[index]), paths[index])
        return [
            (name, int(probabilities.argmax()), float(probabilities.max()), unknown_score or 0.0)
            for name, probabilities, unknown_score in outputs
        ]

    columns = {name: np.empty(len(paths)) for name in detectors}
    unscored: list[UnscoredImage] = []
    count = 0
    for index, result in enumerate(_map_in_order(score, paths, workers)):
        if isinstance(result, UnscoredImage):
            unscored.append(result)
            predictions.write_error(result, None)
        else:
            for name, predicted, confidence, unknown_score in result:
                columns[name][count] = unknown_score
                predictions.write_unlabeled(
                    paths[index], name, predicted, confidence, unknown_score
                )
            count += 1
        report("Scoring unknown images", index + 1, len(paths))
    if not count:
        raise _make_unreadable_error("no known class", unscored)
    return ScoredUnknown(
        {name: column[:count] for name, column in columns.items()}, count, tuple(unscored)
    )


def _map_in_order(
    function: Callable[[int], T], paths: Sequence[str], workers: int
) -> Iterator[T | UnscoredImage]:
    """Yield the result of each image in order, or why it was not scored.

    At most `workers` images are decoded at a time, and as many results wait for an earlier one.
    """

    def apply(index: int) -> T | UnscoredImage:
        try:
            return function(index)
        except DecodeError as cause:
            return _describe_unscored(paths[index], cause)

    # load_image changes the warning filters in every thread; this restores the original ones.
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[T | UnscoredImage]] = deque()
        try:
            for index in range(len(paths)):
                pending.append(pool.submit(apply, index))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _load_image(path: str) -> NDArray[np.uint8]:
    try:
        path.encode()
    except UnicodeEncodeError as cause:
        raise DecodeError(
            "the file's name is not valid UTF-8 and cannot be written to the result; rename the "
            "file."
        ) from cause
    return load_image(path)


def _prepare_inputs(
    classifiers: Mapping[str, Classifier], pixels: NDArray[np.uint8]
) -> dict[str, ModelInput]:
    """Return the input of each variant for a decoded image; equal inputs are computed once."""
    inputs: dict[str, ModelInput] = {}
    prepared: dict[object, ModelInput] = {}
    for name, classifier in classifiers.items():
        key = (classifier.input, classifier.preprocessing, classifier.fixed_size)
        if key not in prepared:
            prepared[key] = classifier.prepare_input(pixels)
        inputs[name] = prepared[key]
    return inputs


def _classify(
    classifiers: Mapping[str, Classifier], pixels: NDArray[np.uint8], source: str
) -> Iterator[tuple[str, NDArray[np.float32], float | None]]:
    """Yield each variant, its probabilities and its unknown score for a decoded image."""
    inputs = _prepare_inputs(classifiers, pixels)
    for name, classifier in classifiers.items():
        outputs = classifier.run(inputs[name])
        probabilities = outputs.probabilities[0]
        unknown_score = None
        if outputs.unknown_scores is not None:
            unknown_score = float(outputs.unknown_scores[0])
        if not math.isfinite(float(probabilities.sum()) + (unknown_score or 0.0)):
            raise BundleError(
                f"The outputs of {name} for {source} are not finite. Export the bundle again, or "
                "choose other {variants}.",
                EvaluateConfig,
            )
        yield name, probabilities, unknown_score


def _describe_unscored(path: str, cause: DecodeError) -> UnscoredImage:
    name = path.encode(errors="backslashreplace").decode()
    return UnscoredImage(name, str(cause).removeprefix(f"{path}: "))


def _make_unreadable_error(source: str, unscored: Sequence[UnscoredImage]) -> DataError:
    first = unscored[0]
    return DataError(
        f"None of the {pluralize(len(unscored), 'image')} of {source} can be read. "
        f"{first.path}: {first.reason}"
    )
