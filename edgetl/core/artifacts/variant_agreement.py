"""Agreement of a measurement with the variant that a bundle recommends."""

from __future__ import annotations

from collections.abc import Iterator

from edgetl.core.artifacts.bench import MIN_ROUNDS, BenchResult
from edgetl.core.artifacts.bench_rows import BenchRow, round_ratios
from edgetl.core.artifacts.bundle import BundleManifest, VariantRecord
from edgetl.core.artifacts.comparison import (
    SpeedupVerdict,
    are_ratios_consistent,
    decide_verdict,
)
from edgetl.core.statistics import Speedup, paired_speedup

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
        pair = _find_rows(result, variant.name)
        if pair is None:
            continue
        ratios = round_ratios(*pair)
        if len(ratios) < MIN_ROUNDS:
            continue
        speedup = paired_speedup(ratios)
        verdict = decide_verdict(
            speedup,
            result.noise.is_noisy or result.is_emulated,
            result.noise.disturbance,
            are_ratios_consistent(ratios),
        )
        if variant.name == manifest.recommended:
            yield from _describe_slow_recommendation(manifest, variant, speedup, verdict)
        elif manifest.recommended == _BASELINE and verdict == "faster":
            yield from _describe_fast_alternative(manifest, variant, speedup)


def _find_rows(result: BenchResult, name: str) -> tuple[BenchRow, BenchRow] | None:
    """Return the first rows of fp32 and of another variant with the same conditions."""
    rows = [row for row in result.rows if row.runtime == "onnxruntime" and row.rounds]
    for row in rows:
        if row.variant != name or name == _BASELINE:
            continue
        for baseline in rows:
            is_comparable = (
                baseline.comparison_key == row.comparison_key and baseline.provider == row.provider
            )
            if baseline.variant == _BASELINE and is_comparable:
                return baseline, row
    return None


def _describe_slow_recommendation(
    manifest: BundleManifest, variant: VariantRecord, speedup: Speedup, verdict: SpeedupVerdict
) -> Iterator[str]:
    # A variant that was not faster at export is recommended for another reason: its size.
    if not variant.is_faster or variant.latency is None or verdict in ("faster", "noisy"):
        return
    claim = f"{variant.latency.speedup:.2f} times as fast as {_BASELINE} at export"
    outcome = "slower" if verdict == "slower" else "not significantly faster"
    accuracy = ""
    lost_points = _compute_lost_points(manifest.variants[0], variant)
    if lost_points > 0:
        accuracy = f", and {lost_points:.1f} points less accurate"
    yield (
        f"The bundle recommends {variant.name}, {claim}; here it is {outcome}: "
        f"{_format_speedup(speedup)}{accuracy}. Use {_BASELINE} on this device."
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
