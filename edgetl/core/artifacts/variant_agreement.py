"""Agreement of a measurement with the variant that a bundle recommends."""

from __future__ import annotations

from collections.abc import Iterator

from edgetl.core.artifacts.bench import BenchResult
from edgetl.core.artifacts.bundle import BundleManifest, VariantRecord
from edgetl.core.artifacts.comparison import RowComparison
from edgetl.core.statistics import Speedup

_BASELINE = "fp32"


def describe_disagreements(manifest: BundleManifest, result: BenchResult) -> Iterator[str]:
    """Yield a sentence for each variant whose speed contradicts the bundle's recommendation.

    A bundle recommends by a short measurement on the exporting machine; a longer one, or another
    device, can decide otherwise. Only significant contradictions count.

    Args:
        manifest: Manifest of the measured bundle.
        result: Result with rows of fp32 and of other variants.
    """
    if manifest.recommended is None or manifest.run.id != result.model.run_id:
        return
    for variant in manifest.variants:
        comparison = _compare_with_baseline(result, variant.name)
        if comparison is None:
            continue
        if variant.name == manifest.recommended:
            yield from _describe_slow_recommendation(manifest, variant, comparison)
        elif manifest.recommended == _BASELINE and comparison.verdict == "faster":
            yield from _describe_fast_alternative(manifest, variant, comparison.speedup)


def _compare_with_baseline(result: BenchResult, name: str) -> RowComparison | None:
    """Compare the first rows of fp32 and of another variant with the same conditions."""
    rows = [row for row in result.rows if row.runtime == "onnxruntime" and row.rounds]
    baselines = [row for row in rows if row.variant == _BASELINE]
    for row in rows:
        if row.variant != name or name == _BASELINE:
            continue
        for baseline in baselines:
            is_same_key = baseline.comparison_key == row.comparison_key
            if is_same_key and baseline.provider == row.provider:
                return result.compare_rows(baseline, row)
    return None


def _describe_slow_recommendation(
    manifest: BundleManifest, variant: VariantRecord, comparison: RowComparison
) -> Iterator[str]:
    # A variant that was not faster at export is recommended for another reason: its size.
    if (
        not variant.is_faster
        or variant.latency is None
        or comparison.verdict in ("faster", "noisy")
    ):
        return
    claim = f"{variant.latency.speedup:.2f} times as fast as {_BASELINE} at export"
    outcome = "slower" if comparison.verdict == "slower" else "not significantly faster"
    accuracy = ""
    lost_points = _compute_lost_points(manifest.variants[0], variant)
    if lost_points > 0:
        accuracy = f", and {lost_points:.1f} points less accurate"
    yield (
        f"The bundle recommends {variant.name}, {claim}; here it is {outcome}: "
        f"{_format_speedup(comparison.speedup)}{accuracy}. Use {_BASELINE} on this device."
    )


def _describe_fast_alternative(
    manifest: BundleManifest, variant: VariantRecord, speedup: Speedup
) -> Iterator[str]:
    reason = manifest.rejection_reasons.get(variant.name)
    if reason is not None:
        yield (
            f"{variant.name} is faster than {_BASELINE} here: {_format_speedup(speedup)}. "
            f"The bundle recommends {_BASELINE}, because {variant.name} {reason}."
        )


def _compute_lost_points(baseline: VariantRecord, variant: VariantRecord) -> float:
    if baseline.accuracy is None or variant.accuracy is None:
        return 0.0
    return 100.0 * (baseline.accuracy.top1 - variant.accuracy.top1)


def _format_speedup(speedup: Speedup) -> str:
    return f"{speedup.ratio:.2f} times [{speedup.low:.2f}, {speedup.high:.2f}]"
