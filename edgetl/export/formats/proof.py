"""Proof of a converted file: its runtime against PyTorch on all proof images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.core.artifacts.bundle import (
    BuildReport,
    FileRecord,
    ParityRecord,
    PathParity,
    VariantRecord,
)
from edgetl.core.errors import ParityError
from edgetl.core.files import sha256_file
from edgetl.core.runtimes import RUNTIMES
from edgetl.device.hardware.cpu import available_cores
from edgetl.device.runtime.golden import (
    VARIANT_TOLERANCE_FACTOR,
    check_logits,
    softmax,
    softmax_tolerance,
)
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import preprocess, to_network_input
from edgetl.device.runtime.sessions.session import RuntimeSession, SessionSource, open_session
from edgetl.export.confidence.measurement import measure_confidence
from edgetl.export.formats.task import ConvertedFile
from edgetl.export.parity.metrics import (
    Logits,
    compute_accuracy,
    compute_parity,
    find_label_flips,
)
from edgetl.export.quantize.images import CroppedImages
from edgetl.export.variant_selection import accuracy_drop
from edgetl.export.variants import MAX_LISTED_FLIPS, VariantBuilder

_PROBABILITY_IMAGES = 8
_MAX_DROP = 10.0
"""Loss of top-1 in points that is a fault of the conversion, not an effect of rounding."""


@dataclass(frozen=True)
class _SessionRunner:
    """A session with edgetl's preprocessing in front of it."""

    session: RuntimeSession
    builder: VariantBuilder

    def run_photos(self, files: Sequence[Path]) -> Logits:
        """Return logits [images, classes] for image files."""
        return self.run_batches(load_image(file)[None] for file in files)

    def run_batches(self, batches: Iterable[NDArray[Any]]) -> Logits:
        """Return logits for batches of images, or of tensors."""
        return np.concatenate(
            [
                self.session.run(["logits"], to_network_input(batch, self.builder.preprocessing))[0]
                for batch in batches
            ]
        )

    def run_crops(
        self, images: CroppedImages
    ) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """Return logits, and unknown scores [images] if the file computes them.

        Raises:
            ParityError: a score is not finite; half precision may overflow.
        """
        names = [name for name in ("logits", "unknown_score") if name in self.session.output_names]
        outputs = [self.session.run(names, batch) for batch in images.batches(1)]
        columns = (np.concatenate(parts) for parts in zip(*outputs, strict=True))
        logits, *scores = (column.astype(np.float64) for column in columns)
        if scores and not np.isfinite(scores[0]).all():
            raise ParityError("its unknown scores are not finite")
        return logits, scores[0].reshape(-1) if scores else None


def prove_converted(
    runtime: str, converted: ConvertedFile, builder: VariantBuilder
) -> VariantRecord:
    """Run a converted file on all proof images and return its record.

    Args:
        runtime: the runtime that the file was written for.
        converted: the file.
        builder: proof images, PyTorch's logits for them and the golden images of the bundle.

    Raises:
        ParityError: the outputs are wrong, or the runtime computes in another precision here.
        BundleError: the runtime cannot load the file.
        MissingPackageError: the runtime is not installed.
    """
    source = SessionSource(
        converted.files, available_cores(), builder.preprocessing.crop, converted.precision
    )
    runner = _SessionRunner(open_session(runtime, source), builder)
    images = builder.evaluation_images
    logits = runner.run_photos(images.files)
    precision = runner.session.describe().precision
    if precision not in (None, converted.precision):
        raise ParityError(
            f"{RUNTIMES[runtime].title} computes it in {precision} on this CPU, so it cannot be "
            "proven here. Export on a machine like the device."
        )
    parity = _prove_logits(converted, logits, runner)
    reference = converted.confidence or builder.fp32_confidence
    confidence = measure_confidence(builder.estimator, reference, runner.run_crops)
    test = builder.accuracy_test
    main, *extra = (
        FileRecord(path.name, sha256_file(path), path.stat().st_size) for path in converted.files
    )
    assert main.bytes is not None
    flips = find_label_flips(logits, builder.reference_logits, images, builder.labels)
    variant = VariantRecord(
        name=converted.name,
        file=main.file,
        sha256=main.sha256,
        bytes=main.bytes,
        precision=converted.precision,
        input=builder.config.input,
        opset=builder.config.opset,
        parity=parity,
        accuracy=compute_accuracy(logits, builder.reference_logits, images, builder.labels),
        report=BuildReport(
            method=converted.method,
            flips=tuple(flip.record for flip in flips[:MAX_LISTED_FLIPS]),
        ),
        test_accuracy=None if test is None else test.measure(runner.run_photos),
        runtime=runtime,
        extra_files=tuple(extra),
    )
    variant = confidence.add_to_record(variant)
    _check_probabilities(variant, runner)
    drop = accuracy_drop(variant)
    if drop > _MAX_DROP:
        raise ParityError(
            f"it loses {drop:.1f} points of accuracy, which rounding does not explain"
        )
    return variant


def _check_probabilities(variant: VariantRecord, runner: _SessionRunner) -> None:
    """Check probabilities of a few images; files that compute none get edgetl's softmax."""
    session = runner.session
    if "probabilities" not in session.output_names:
        return
    for path in runner.builder.evaluation_images.files[:_PROBABILITY_IMAGES]:
        pixels = preprocess(load_image(path), runner.builder.preprocessing)
        logits, probabilities = session.run(["logits", "probabilities"], pixels)
        expected = softmax(logits.astype(np.float64), variant.temperature)
        error = float(np.abs(probabilities - expected).max())
        if not error <= softmax_tolerance("cpu", variant):
            raise ParityError(
                f"its probabilities differ from the softmax of its logits by {error:.3g}"
            )


def _prove_logits(converted: ConvertedFile, logits: Logits, runner: _SessionRunner) -> ParityRecord:
    """Compare logits with PyTorch's; of float32, every one must be within the tolerance."""
    builder = runner.builder
    reference = builder.reference_logits
    if not np.isfinite(logits).all():
        raise ParityError("its logits are not finite")
    kind = builder.evaluation_images.kind
    if converted.precision != "fp32":
        parity = compute_parity(
            logits, reference, kind, builder.max_golden_difference(runner.run_batches)
        )
        limit = VARIANT_TOLERANCE_FACTOR * max(1.0, float(np.abs(reference).max()))
        if parity.path.tolerance > limit:
            raise ParityError(f"its logits differ from PyTorch's by {parity.path.max_abs_diff:.3g}")
        return parity
    tolerance = builder.config.path_tolerance
    gate = check_logits(logits.astype(np.float64), reference, tolerance)
    if not gate.passed:
        raise ParityError(f"on {len(logits)} {kind} images {gate.reason}")
    agreement = gate.top1_agreement or 0
    same = int((logits.argmax(1) == reference.argmax(1)).sum())
    return ParityRecord(
        PathParity(
            images=len(logits),
            kind=kind,
            max_abs_diff=gate.max_logit_difference or 0.0,
            tolerance=tolerance,
            top1_agreement=agreement / len(logits),
            ties=agreement - same,
        )
    )
