"""`edgetl.evaluate`: figures of a bundle's variants on labeled images, on this device."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import edgetl
from edgetl.core.artifacts.bench_json import write_result
from edgetl.core.artifacts.evaluation import (
    ConfidentMistake,
    EvaluatedImages,
    EvaluationFigures,
    EvaluationResult,
    UnknownSource,
    VariantEvaluation,
)
from edgetl.core.artifacts.storage import check_output_path, store_result
from edgetl.core.config.evaluate import EvaluateConfig
from edgetl.core.errors import BundleError, ConfigError, DataError
from edgetl.core.progress import ProgressCallback, log_progress
from edgetl.core.runtimes import ONNXRUNTIME
from edgetl.device.evaluation.corruption_counts import select_corruptions
from edgetl.device.evaluation.image_loop import (
    ScoredImages,
    ScoredUnknown,
    score_images,
    score_unknown_images,
)
from edgetl.device.evaluation.images import ImageList, join_names, list_evaluated_images
from edgetl.device.evaluation.metrics import compare_predictions, score_classes, score_confidence
from edgetl.device.evaluation.predictions_file import open_predictions_file
from edgetl.device.evaluation.scores import ScoreTable
from edgetl.device.evaluation.target import (
    EvaluationTarget,
    find_evaluation_target,
    open_models,
)
from edgetl.device.hardware.cpu import available_cores
from edgetl.device.hardware.info import collect_device_info
from edgetl.device.runtime.classifier import Classifier
from edgetl.device.runtime.images import list_images
from edgetl.device.runtime.session import check_provider

MAX_MISTAKES = 20
"""Wrong predictions in the result; the file `predictions` has all of them."""
SPLIT_NOTES = {
    "val": "Validation images also choose the best epoch, the temperature and the thresholds, so "
    "figures on them may be optimistic. Images that were never used give unbiased ones.",
    "train": "The model was trained on these images: expect lower figures on others.",
}


def evaluate(config: EvaluateConfig, progress: ProgressCallback | None = None) -> EvaluationResult:
    """Evaluate the variants of a bundle on labeled images, write the result and return it.

    Each variant is first checked on the golden images on this device; one that fails is in the
    result (`failed_variants`), but is not evaluated. Every image is decoded once for all variants;
    on the CPU, each thread classifies an image of its own. An image that cannot be read is listed
    in the result and not scored.

    Args:
        config: the bundle, the images and the options.
        progress: called after each image.

    Raises:
        DataError: there are no images, none can be read, or a class is not among the labels.
        ConfigError: the data have no such split, column or level, or a limit names no class.
        BundleError: the bundle is missing or altered, or no variant passes the gate.
        ProviderError: the provider is unknown, did not start, or did not take all nodes.
        BenchError: the predictions cannot be written. A result that cannot be written has no
            `path`, and its last note says why.
    """
    report = progress or log_progress
    target = find_evaluation_target(config)
    _check_provider(config, target)
    check_output_path(config.output, target.results_folder)
    _check_limits(config, target)
    images = list_evaluated_images(config, target.labels)
    unknown_paths = [] if config.unknown is None else _list_unknown_images(config.unknown)
    corruptions = select_corruptions(config)
    created = datetime.now(UTC)
    threads = config.threads or available_cores()
    # On the CPU, images in parallel with a thread each take half the time of an image with all.
    workers, intra_op_threads = (threads, 1) if config.provider == "cpu" else (1, threads)
    report("Checking the golden images", 0, 0)
    models = open_models(target, config, workers, intra_op_threads)
    classifiers = {model.name: model.classifier for model in models if model.classifier is not None}
    if config.unknown is not None:
        _check_unknown_scores(config, classifiers)
    if corruptions:
        _check_image_sizes(classifiers)
    unknown = None
    start = time.perf_counter()
    with open_predictions_file(config.predictions, target.labels) as predictions:
        scored = score_images(classifiers, images, corruptions, workers, predictions, report)
        if config.unknown is not None:
            unknown = score_unknown_images(classifiers, unknown_paths, workers, predictions, report)
    seconds = time.perf_counter() - start
    report("Computing figures", 0, 0)
    figures = {
        name: _make_figures(name, scored, unknown, images, target, config) for name in scored.tables
    }
    first = next(iter(scored.tables.values()))
    data = _describe_data(config, images, scored, target)
    result = EvaluationResult(
        created=created.isoformat(timespec="seconds"),
        edgetl=edgetl.__version__,
        target=str(config.bundle),
        model=target.model,
        labels=target.labels,
        device=collect_device_info(),
        provider=config.provider,
        threads=threads,
        data=data,
        variants=tuple(
            VariantEvaluation(
                model.name, model.precision, model.file_sha256, model.gate, figures.get(model.name)
            )
            for model in models
        ),
        comparisons=compare_predictions(
            {name: table.predicted for name, table in scored.tables.items()}, first.labels
        ),
        unknown_data=_describe_unknown_data(config, unknown),
        limits=config.limits,
        seconds=seconds,
        notes=tuple(_make_notes(target, images, data)),
    )
    path, notes = store_result(
        partial(write_result, result), config.output, target.results_folder, created
    )
    return replace(result, path=path, notes=(*result.notes, *notes))


def _check_provider(config: EvaluateConfig, target: EvaluationTarget) -> None:
    runtimes = [variant.runtime for variant in target.variants] or [ONNXRUNTIME]
    if ONNXRUNTIME in runtimes:
        check_provider(config.provider)


def _check_limits(config: EvaluateConfig, target: EvaluationTarget) -> None:
    unknown = [
        limit.label for limit in config.limits.min_recall if limit.label not in target.labels
    ]
    if unknown:
        raise ConfigError(
            f"{{min_recall}} names {join_names(unknown)}, but the labels of the bundle are: "
            f"{join_names(target.labels)}.",
            EvaluateConfig,
        )


def _list_unknown_images(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(f"{folder} of {{unknown}} is not a folder. Give one.", EvaluateConfig)
    paths = [str(path) for path in list_images(folder)]
    if not paths:
        raise DataError(
            f"{folder} of {{unknown}} has no images. Give a folder of images.", EvaluateConfig
        )
    return paths


def _check_unknown_scores(config: EvaluateConfig, classifiers: Mapping[str, Classifier]) -> None:
    if all(classifier.unknown is None for classifier in classifiers.values()):
        raise BundleError(
            f"{config.bundle} has no output unknown_score, which {{unknown}} needs: it was exported "
            "with --no-unknown or by an older edgetl. Export it again.",
            EvaluateConfig,
        )


def _check_image_sizes(classifiers: Mapping[str, Classifier]) -> None:
    fixed = [name for name, model in classifiers.items() if model.fixed_size is not None]
    if fixed:
        raise ConfigError(
            f"{{corruptions}} needs variants without a fixed image size, got {', '.join(fixed)}. "
            "Choose other {variants}.",
            EvaluateConfig,
        )


def _make_figures(
    name: str,
    scored: ScoredImages,
    unknown: ScoredUnknown | None,
    images: ImageList,
    target: EvaluationTarget,
    config: EvaluateConfig,
) -> EvaluationFigures:
    table, labels = scored.tables[name], target.labels
    classes = score_classes(table.labels, table.predicted, labels)
    calibration, risk_coverage = score_confidence(table.confidences, table.correct, table.brier)
    unknown_scores = None if unknown is None else unknown.unknown_scores.get(name)
    groups = {key: values[scored.rows] for key, values in images.groups.items()}
    return EvaluationFigures(
        accuracy=classes.accuracy,
        correct=classes.correct,
        balanced_accuracy=classes.balanced_accuracy,
        macro_f1=classes.macro_f1,
        top_k={str(k): table.score_top_k(k) for k in sorted(config.top_k) if k < len(labels)},
        per_class=classes.per_class,
        confusion=classes.confusion,
        calibration=calibration,
        risk_coverage=risk_coverage,
        unknown=table.score_unknown(unknown_scores),
        prediction_sets=table.score_prediction_sets(len(labels)),
        groups=table.score_groups(groups, labels),
        corruptions=scored.corruptions[name].score(),
        mistakes=tuple(_list_mistakes(table, scored.rows, images, labels)),
    )


def _list_mistakes(
    table: ScoreTable, rows: list[int], images: ImageList, labels: tuple[str, ...]
) -> Iterator[ConfidentMistake]:
    for row in table.find_confident_mistakes(MAX_MISTAKES).tolist():
        yield ConfidentMistake(
            path=images.paths[rows[row]],
            label=labels[table.labels[row]],
            predicted=labels[table.predicted[row]],
            probability=float(table.confidences[row]),
        )


def _describe_data(
    config: EvaluateConfig, images: ImageList, scored: ScoredImages, target: EvaluationTarget
) -> EvaluatedImages:
    table = next(iter(scored.tables.values()))
    counts = [0] * len(target.labels)
    for label in table.labels.tolist():
        counts[label] += 1
    return EvaluatedImages(
        path=str(config.data),
        description=images.description,
        split=images.split,
        images=len(table),
        per_class=dict(zip(target.labels, counts, strict=True)),
        unscored=scored.unscored,
        ignored_classes=images.ignored_classes,
    )


def _describe_unknown_data(
    config: EvaluateConfig, unknown: ScoredUnknown | None
) -> UnknownSource | None:
    if unknown is None:
        return None
    return UnknownSource(str(config.unknown), unknown.images, unknown.unscored)


def _make_notes(
    target: EvaluationTarget, images: ImageList, data: EvaluatedImages
) -> Iterator[str]:
    yield from target.notes
    if images.split is not None and images.split in SPLIT_NOTES:
        yield SPLIT_NOTES[images.split]
    if data.missing_classes:
        yield (
            f"No images of: {join_names(data.missing_classes)}. Balanced accuracy and macro-F1 are "
            "means over the other classes."
        )
