"""Which variant a bundle recommends, and why not the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgetl.core.config.export import ExportConfig
from edgetl.device.runtime.bundle import Variant

_PRECISION_NOTES = {
    "fp16": "; CPUs compute it in float32, it is for GPUs",
    "weights int8": "; it is for size (--optimise size)",
}


@dataclass(frozen=True)
class VariantChoice:
    """The recommendation."""

    name: str | None
    """None where no variant meets the limits."""
    rejection_reasons: dict[str, str]
    """Why a variant is not recommended: one clause each; the chosen one and runners-up have none."""


def choose(variants: Sequence[Variant], config: ExportConfig) -> VariantChoice:
    """The fastest or smallest of the variants that keep the accuracy and the latency asked for.

    For latency a variant must be shown faster than fp32, by an interval that excludes 1; for size it need not.
    """
    # Where fp32 itself is too slow, a variant within the limit need not be shown faster than it.
    fp32_fits = all(
        not _unmet_limit_reason(variant, config) for variant in variants if variant.name == "fp32"
    )
    against = {
        variant.name: reason
        for variant in variants
        if (
            reason := _unmet_limit_reason(variant, config)
            or _not_faster_reason(variant, config, fp32_fits)
        )
    }
    fit = [variant for variant in variants if variant.name not in against]
    if not fit:
        return VariantChoice(None, against)
    if config.optimise == "size":
        return VariantChoice(min(fit, key=lambda variant: variant.bytes).name, against)
    return VariantChoice(
        min(
            fit, key=lambda variant: (variant.latency.get("p50_ms") or 0.0, variant.name != "fp32")
        ).name,
        against,
    )


def _unmet_limit_reason(variant: Variant, config: ExportConfig) -> str:
    p50, drop = variant.latency.get("p50_ms"), accuracy_drop(variant)
    search = variant.report.get("search", {})
    if search.get("fits") is False:
        lost = search["candidates"][search["chosen"]]["held_back"]["drop"]
        return f"loses {lost:.1f} points on training images held back, {config.max_accuracy_drop:g} are allowed, and no repair helped"
    if drop > config.max_accuracy_drop:
        return f"loses {drop:.1f} points of accuracy, {config.max_accuracy_drop:g} are allowed"
    if variant.latency.get("reason"):
        return f"was not timed: {variant.latency['reason']}"
    if config.max_latency_ms is not None and (p50 is None or p50 > config.max_latency_ms):
        return (
            f"takes {p50:.2f} ms, {config.max_latency_ms:g} are allowed" if p50 else "was not timed"
        )
    return ""


def _not_faster_reason(variant: Variant, config: ExportConfig, fp32_fits: bool) -> str:
    if (
        fp32_fits
        and config.optimise == "latency"
        and variant.name != "fp32"
        and variant.latency.get("verdict") != "faster"
    ):
        low, high = variant.latency.get("ci95", (0.0, 0.0))
        won = f", faster in {variant.latency.get('rounds_won', 0)} of {variant.latency.get('rounds', 0)} rounds"
        measured = f"is not shown faster than fp32 here: {variant.latency.get('speedup', 0.0):.2f} times [{low:.2f}, {high:.2f}]{won}"
        return f"{measured}{_PRECISION_NOTES.get(variant.precision, '')}"
    return ""


def accuracy_drop(variant: Variant) -> float:
    """Points of top-1 lost against PyTorch; without labels the share of images, in %, with another label."""
    drop = variant.accuracy.get("drop")
    return (
        float(drop)
        if drop is not None
        else 100.0 * (1 - variant.parity.get("path", {}).get("top1_agreement", 1.0))
    )


def describe_closest_variant(variants: Sequence[Variant], config: ExportConfig) -> str:
    """One sentence on the variant that came closest to limits that none meets."""
    unlimited = replace(config, max_latency_ms=None)
    within = [
        variant
        for variant in variants
        if not _unmet_limit_reason(variant, unlimited) and variant.latency.get("p50_ms")
    ]
    if not within or config.max_latency_ms is None:
        return ""
    best = min(within, key=lambda variant: variant.latency["p50_ms"])
    return f"{best.name} came closest: {best.latency['p50_ms']:.2f} ms with {accuracy_drop(best):.1f} points lost."
