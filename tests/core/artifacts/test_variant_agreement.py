"""Measurements that contradict a bundle's recommendation are described."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgetl.core.artifacts.bench import BenchedModel, BenchResult
from edgetl.core.artifacts.bundle import BundleManifest, read_bundle_record
from edgetl.core.artifacts.noise import Interference, NoiseReport
from edgetl.core.artifacts.variant_agreement import describe_disagreements
from edgetl.report.bundle.page import variants_section
from tests.helpers.bench_results import bench_result, bench_row
from tests.helpers.runs import write_bundle


@pytest.fixture
def manifest(tmp_path: Path) -> BundleManifest:
    """Manifest that recommends int8: twice as fast as fp32 at export, 3.3 points less accurate."""
    return read_bundle_record(write_bundle(tmp_path / "bundle").path).manifest


def result_with(fp32_ms: float, int8_ms: float, **changes: object) -> BenchResult:
    rows = (bench_row("onnxruntime", "fp32", fp32_ms), bench_row("onnxruntime", "int8", int8_ms))
    return bench_result(rows, **changes)


def recommend_fp32(manifest: BundleManifest, reason: str) -> BundleManifest:
    return replace(manifest, recommended="fp32", rejection_reasons={"int8": reason})


def test_slower_recommendation_is_contradicted(manifest: BundleManifest) -> None:
    (sentence,) = describe_disagreements(manifest, result_with(3.0, 3.3))
    assert sentence.startswith(
        "The bundle recommends int8, 2.00 times as fast as fp32 at export; here it is slower: 0.91 "
    )
    assert sentence.endswith(", and 3.3 points less accurate. Use fp32 on this device.")


def test_equally_fast_recommendation_is_contradicted(manifest: BundleManifest) -> None:
    (sentence,) = describe_disagreements(manifest, result_with(3.0, 3.0))
    assert "here it is not significantly faster: 1.00 " in sentence


def test_confirmed_recommendation_is_not_mentioned(manifest: BundleManifest) -> None:
    assert list(describe_disagreements(manifest, result_with(3.0, 1.5))) == []


def test_recommendation_for_size_is_not_contradicted(manifest: BundleManifest) -> None:
    fp32, int8 = manifest.variants
    latency = replace(int8.latency, verdict="slower", speedup=0.9, interval=(0.8, 0.95))
    small = replace(manifest, variants=(fp32, replace(int8, latency=latency)))
    assert list(describe_disagreements(small, result_with(3.0, 3.3))) == []


def test_faster_alternative_is_named_with_its_reason(manifest: BundleManifest) -> None:
    reason = "loses 3.3 points of accuracy, the limit is 1"
    (sentence,) = describe_disagreements(recommend_fp32(manifest, reason), result_with(3.0, 1.5))
    assert sentence.startswith("int8 is faster than fp32 here: 2.00 times [")
    assert sentence.endswith(f"The bundle recommends fp32, because int8 {reason}.")
    slow = result_with(3.0, 3.3)
    assert list(describe_disagreements(recommend_fp32(manifest, reason), slow)) == []


def test_undecided_or_foreign_results_contradict_nothing(manifest: BundleManifest) -> None:
    noise = NoiseReport(("another program was busy",), Interference(disturbance=0.5))
    noisy = result_with(3.0, 3.1, noise=noise)
    other_run = result_with(3.0, 3.3, model=BenchedModel("mobilenet_v2", "another"))
    only_int8 = bench_result((bench_row("onnxruntime", "int8", 3.3),))
    one_round = bench_result(
        (
            bench_row("onnxruntime", "fp32", 3.0, rounds=1),
            bench_row("onnxruntime", "int8", 3.3, rounds=1),
        )
    )
    for result in (noisy, other_run, only_int8, one_round):
        assert list(describe_disagreements(manifest, result)) == []


def test_report_shows_contradiction_beside_recommendation(tmp_path: Path) -> None:
    bundle = read_bundle_record(write_bundle(tmp_path / "bundle").path)
    html = str(variants_section(bundle, [result_with(3.0, 3.3)]).blocks)
    assert "Measured on Cortex-A76: The bundle recommends int8" in html
