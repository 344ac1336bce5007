"""Classification of all images by all variants: each image is decoded once, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

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
from edgetl.device.evaluation.scores import ScoreTable, score_image
from edgetl.device.runtime.classifier import Classifier
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import resize_around_crop

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
    predictions: PredictionsFile,
    report: ProgressCallback,
) -> ScoredImages:
    """Classify the labeled images.

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
    rows: list[int] = []
    unscored: list[UnscoredImage] = []
    for index, (path, label) in enumerate(zip(images.paths, images.labels.tolist(), strict=True)):
        report("Evaluating", index, total)
        try:
            pixels = _load_image(path)
            inputs = _prepare_inputs(classifiers, pixels)
        except DecodeError as cause:
            unscored.append(_describe_unscored(path, cause))
            predictions.write_error(unscored[-1], label)
            continue
        rows.append(index)
        for name, probabilities, unknown_score in _classify(classifiers, inputs, path):
            table = tables[name]
            score = score_image(probabilities, label, table.levels, unknown_score)
            table.add(label, score)
            predictions.write_prediction(
                path,
                label,
                name,
                score.predicted,
                score.confidence,
                score.label_probability,
                unknown_score,
            )
        _score_corruptions(classifiers, pixels, label, index, corruptions, corrupted)
    report("Evaluating", total, total)
    if not rows:
        raise _make_unreadable_error(images.description, unscored)
    return ScoredImages(tables, rows, tuple(unscored), corrupted)


def _score_corruptions(
    classifiers: Mapping[str, Classifier],
    pixels: NDArray[np.uint8],
    label: int,
    seed: int,
    corruptions: Sequence[Corruption],
    counts: Mapping[str, CorruptionCounts],
) -> None:
    """Classify an image after each corruption, at the resolution of the network.

    Corrupted at full resolution, most of the effect would be lost in the resize.
    """
    if not corruptions:
        return
    preprocessing = next(iter(classifiers.values())).preprocessing
    square = resize_around_crop(pixels, preprocessing)
    for corruption in corruptions:
        kind, severity = corruption
        inputs = _prepare_inputs(classifiers, corrupt(square, kind, severity, seed))
        source = f"an image with {kind} of severity {severity}"
        for name, probabilities, unknown_score in _classify(classifiers, inputs, source):
            counts[name].add(
                corruption, score_image(probabilities, label, (), unknown_score), label
            )


def score_unknown_images(
    classifiers: Mapping[str, Classifier],
    paths: Sequence[str],
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
    columns = {name: np.empty(len(paths)) for name in detectors}
    unscored: list[UnscoredImage] = []
    count = 0
    for index, path in enumerate(paths):
        report("Scoring unknown images", index, len(paths))
        try:
            inputs = _prepare_inputs(detectors, _load_image(path))
        except DecodeError as cause:
            unscored.append(_describe_unscored(path, cause))
            predictions.write_error(unscored[-1], None)
            continue
        for name, probabilities, unknown_score in _classify(detectors, inputs, path):
            columns[name][count] = unknown_score
            best = int(probabilities.argmax())
            predictions.write_prediction(
                path, None, name, best, float(probabilities[best]), None, unknown_score
            )
        count += 1
    report("Scoring unknown images", len(paths), len(paths))
    if not count:
        raise _make_unreadable_error("no known class", unscored)
    return ScoredUnknown(
        {name: column[:count] for name, column in columns.items()}, count, tuple(unscored)
    )


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
    classifiers: Mapping[str, Classifier], inputs: Mapping[str, ModelInput], source: str
) -> Iterator[tuple[str, NDArray[np.float32], float | None]]:
    """Yield the variant, its probabilities and its unknown score."""
    for name, classifier in classifiers.items():
        outputs = classifier.run(inputs[name])
        probabilities = outputs.probabilities[0]
        unknown_score = None
        if outputs.unknown_scores is not None:
            unknown_score = float(outputs.unknown_scores[0])
        if not np.isfinite([probabilities.sum(), unknown_score or 0.0]).all():
            raise BundleError(
                f"The outputs of {name} for {source} are not finite. Export the bundle again, or "
                "choose another {variants}.",
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
