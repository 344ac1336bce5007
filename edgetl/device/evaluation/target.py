"""Variants to evaluate: selection, sessions and the check on the golden images."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edgetl.core.artifacts.bench import BenchedModel
from edgetl.core.artifacts.bundle import VariantRecord
from edgetl.core.artifacts.gate import GateResult
from edgetl.core.artifacts.model_metadata import ModelMetadata
from edgetl.core.config.evaluate import EvaluateConfig
from edgetl.core.errors import BundleError
from edgetl.core.files import sha256_file
from edgetl.core.paths import RunDirectory
from edgetl.core.runtimes import is_installed
from edgetl.device.runtime.bundle import Bundle, UnreadableModelError, open_bundle
from edgetl.device.runtime.classifier import (
    Classifier,
    open_classifier,
    open_variant,
    run_images,
)
from edgetl.device.runtime.golden import GoldenSet
from edgetl.device.runtime.onnx_file import OnnxFileError, read_onnx_file


@dataclass(frozen=True)
class EvaluationTarget:
    """Bundle or single ONNX file with the variants to evaluate."""

    path: Path
    labels: tuple[str, ...]
    model: BenchedModel
    results_folder: Path
    """Default folder of results."""
    bundle: Bundle | None = None
    """None for a single ONNX file."""
    variants: tuple[VariantRecord, ...] = ()
    """Variants of the bundle; empty for a single ONNX file."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvaluatedModel:
    """Variant with its session."""

    name: str
    precision: str
    file_sha256: str
    gate: GateResult
    classifier: Classifier | None
    """None if the variant failed the gate."""


def find_evaluation_target(config: EvaluateConfig) -> EvaluationTarget:
    """Return the variants to evaluate; no session is opened.

    Raises:
        BundleError: There is no bundle, no such variant, or the ONNX file was not written by edgetl.
    """
    path = Path(config.bundle)
    if path.suffix == ".onnx":
        return _find_single_file(path, config)
    bundle = open_bundle(path)
    selected = tuple(bundle.select_variant(name) for name in config.variants)
    notes: tuple[str, ...] = ()
    if not selected:
        # Photos of other sizes could not be scored by all variants.
        installed = [variant for variant in bundle.variants if is_installed(variant.runtime)]
        selected = tuple(variant for variant in installed if variant.size is None)
        fixed = [variant.name for variant in installed if variant.size is not None]
        if selected and fixed:
            notes = (
                f"Not evaluated, as they take images of one size only: {', '.join(fixed)}. "
                "Select them with --variant.",
            )
    run = RunDirectory(path) if RunDirectory.exists_at(path) else None
    return EvaluationTarget(
        path=path,
        labels=bundle.labels,
        model=BenchedModel(bundle.model, bundle.run_id),
        results_folder=Path("evaluation") if run is None else run.evaluation,
        bundle=bundle,
        variants=selected or bundle.variants,
        notes=notes,
    )


def _find_single_file(path: Path, config: EvaluateConfig) -> EvaluationTarget:
    if config.variants:
        raise BundleError(
            "{variants} needs a bundle: an ONNX file has no variants. Leave out {variants}.",
            EvaluateConfig,
        )
    try:
        metadata = ModelMetadata.from_properties(read_onnx_file(path).metadata)
    except (OSError, OnnxFileError) as cause:
        raise BundleError(
            f"{path} is not an ONNX model: {cause}. Give a bundle, or an ONNX file of edgetl."
        ) from cause
    if metadata is None:
        raise BundleError(
            f"{path} has no edgetl metadata (labels, preprocessing, input). "
            "Give a bundle, or an ONNX file exported by edgetl."
        )
    return EvaluationTarget(
        path=path,
        labels=metadata.labels,
        model=BenchedModel(metadata.model or path.name, metadata.run_id),
        results_folder=Path("evaluation"),
        notes=("A single ONNX file has no golden images: it was not checked on this device.",),
    )


def open_models(
    target: EvaluationTarget, config: EvaluateConfig, workers: int, threads: int
) -> list[EvaluatedModel]:
    """Open a session for each variant and check it on the golden images.

    Args:
        target: Variants to open.
        config: Options.
        workers: Number of variants that are opened and checked at the same time.
        threads: Intra-op threads of each session.

    Raises:
        BundleError: A file is missing or altered, or no variant passes the gate.
        ProviderError: See `open_classifier`.
    """
    if target.bundle is None:
        classifier = open_classifier(target.path, None, config.provider, threads)
        gate = GateResult(checked=False, passed=None, reason="a single ONNX file")
        digest = sha256_file(target.path)
        return [EvaluatedModel(target.path.stem, "", digest, gate, classifier)]
    open_model = partial(
        _open_model, target.bundle, target.bundle.load_golden(), config.provider, threads
    )
    # load_image changes the warning filters in every thread; this restores the original ones.
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        models = list(pool.map(open_model, target.variants))
    if all(model.classifier is None for model in models):
        reasons = "; ".join(f"{model.name}: {model.gate.reason}" for model in models)
        raise BundleError(
            f"No variant passed the check on the golden images on this device: {reasons}. "
            f"`edgetl verify {target.path}` shows details."
        )
    return models


def _open_model(
    bundle: Bundle, golden: GoldenSet, provider: str, threads: int, variant: VariantRecord
) -> EvaluatedModel:
    classifier: Classifier | None = None
    try:
        classifier = open_variant(bundle, variant, provider, threads)
        outputs = run_images(classifier, golden.load_images(variant))
        gate = golden.check(variant, provider, outputs)
    except UnreadableModelError as cause:
        gate = GateResult.failure(str(cause))
    passed = classifier if gate.passed else None
    return EvaluatedModel(variant.name, variant.precision, variant.sha256, gate, passed)
