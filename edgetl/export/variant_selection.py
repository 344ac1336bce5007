"""Selection of the variant that a bundle recommends, with reasons against the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgetl.core.artifacts.bundle import VariantRecord
from edgetl.core.config.export import ExportConfig
from edgetl.core.runtimes import ONNXRUNTIME

_PRECISION_NOTES = {
    "fp16": "; it is meant for GPUs, CPUs compute it in float32",
    "weights int8": "; it is meant for size (--optimise size)",
    "int8 dynamic": "; it is meant for networks of matrix products, CPUs compute its convolutions slowly",
}


@dataclass(frozen=True)
class VariantChoice:
    """The recommended variant, with reasons against the rejected ones."""

    name: str | None
    """Name of the variant; None if no variant meets the limits."""
    rejection_reasons: dict[str, str]
    """Variant name to a clause on why it was rejected; variants that meet all limits have none."""


def choose(variants: Sequence[VariantRecord], config: ExportConfig) -> VariantChoice:
    """Choose the fastest or smallest variant within the accuracy and latency limits.

    To be chosen for latency, a variant must be significantly faster than fp32 (its interval
    excludes 1); for size it need not be.
    """
    # If fp32 itself exceeds the limits, other variants need not be faster than it.
    fp32_fits = all(
        not _unmet_limit_reason(variant, config) for variant in variants if variant.name == "fp32"
    )
    reasons = {}
    fitting = []
    for variant in variants:
        reason = _unmet_limit_reason(variant, config)
        # Files of other runtimes are chosen on the device, by `edgetl bench`.
        is_candidate = variant.runtime == ONNXRUNTIME
        if is_candidate:
            reason = reason or _not_faster_reason(variant, config, fp32_fits)
        if reason:
            reasons[variant.name] = reason
        elif is_candidate:
            fitting.append(variant)
    if not fitting:
        return VariantChoice(None, reasons)
    if config.optimise == "size":
        best = min(fitting, key=lambda variant: variant.bytes)
    else:
        # If p50 is equal, prefer fp32.
        best = min(
            fitting,
            key=lambda variant: (variant.p50_ms or 0.0, variant.name != "fp32"),
        )
    return VariantChoice(best.name, reasons)


def _unmet_limit_reason(variant: VariantRecord, config: ExportConfig) -> str:
    max_drop = config.max_accuracy_drop
    search = variant.search
    if search is not None and not search.is_within_limit:
        return (
            f"loses {search.chosen.score.drop:.1f} points on held-out training images, the limit is {max_drop:g}, "
            "and no repair helped"
        )
    drop = accuracy_drop(variant)
    if drop > max_drop:
        return f"loses {drop:.1f} points of accuracy, the limit is {max_drop:g}"
    if variant.latency is not None and variant.latency.reason:
        return f"was not timed: {variant.latency.reason}"
    p50_ms = variant.p50_ms
    if config.max_latency_ms is None or (p50_ms is not None and p50_ms <= config.max_latency_ms):
        return ""
    if not p50_ms:
        return "was not timed"
    return f"takes {p50_ms:.2f} ms, the limit is {config.max_latency_ms:g} ms"


def _not_faster_reason(variant: VariantRecord, config: ExportConfig, fp32_fits: bool) -> str:
    if not fp32_fits or config.optimise != "latency" or variant.name == "fp32" or variant.is_faster:
        return ""
    note = _PRECISION_NOTES.get(variant.precision, "")
    latency = variant.latency
    if latency is None or latency.speedup is None or latency.interval is None:
        return f"was not compared with fp32{note}"
    low, high = latency.interval
    return (
        f"was not significantly faster than fp32 at export: {latency.speedup:.2f} times "
        f"[{low:.2f}, {high:.2f}], faster in {latency.rounds_won} of {latency.rounds} rounds{note}"
    )


def accuracy_drop(variant: VariantRecord) -> float:
    """Return the points of top-1 lost against PyTorch.

    Without true labels it is the share of images, in percent, whose label differs from PyTorch's.
    """
    if variant.accuracy is not None:
        return variant.accuracy.drop
    return 100.0 * (1 - variant.parity.path.top1_agreement)


def describe_closest_variant(variants: Sequence[VariantRecord], config: ExportConfig) -> str:
    """Return a sentence on the fastest accurate variant, for when none meets the latency limit."""
    unlimited = replace(config, max_latency_ms=None)
    timed = [
        (variant.p50_ms, variant)
        for variant in variants
        if variant.p50_ms is not None and not _unmet_limit_reason(variant, unlimited)
    ]
    if not timed or config.max_latency_ms is None:
        return ""
    p50_ms, best = min(timed, key=lambda item: item[0])
    return f"{best.name} came closest: {p50_ms:.2f} ms with {accuracy_drop(best):.1f} points lost."
