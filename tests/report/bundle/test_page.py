from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgetl.core.artifacts.bundle import read_bundle_record
from edgetl.core.errors import BundleError
from edgetl.report.bundle.page import render_bundle_report
from tests.helpers.browser import CHROMIUM
from tests.helpers.pages import Page, seen_in_browser
from tests.helpers.runs import UNKNOWN_METHOD, write_bundle


def bundle_page(path: Path) -> Page:
    return Page(render_bundle_report(read_bundle_record(path)))


def alter_manifest(path: Path, **changes: Any) -> Path:
    manifest = path / "bundle.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changes), encoding="utf-8")
    return path


def test_bundle_page_shows_variants_and_parity(tmp_path: Path) -> None:
    page = bundle_page(
        write_bundle(
            tmp_path / "bundle", rejection_reasons={"fp32": "takes 5.00 ms, 3 are allowed"}
        ).path
    )
    assert page.sections == [
        "summary",
        "variants",
        "proof",
        "contract",
        "labels",
        "golden",
        "provenance",
    ]
    assert page.outside == []
    assert page.tags.count("img") == 2
    for words in (
        "Recommended: int8 (int8.onnx, 2.5 MB), of 2 variants.",
        "80.0% of 30 validation images (95% interval 66.0% to 93.0%), 3.3 points below PyTorch.",
        "2.00 times as fast as fp32 (faster)",
        "fp32 takes 5.00 ms, 3 are allowed.",
        "fp32 identical tensors 30 validation 8e-06 0.001",
        "Resize the shorter side to 73 pixels",
        "3 labels, in the order of the outputs: daisy, roses, tulips",
    ):
        assert words in page.text, words
    assert page.text.count(" as proven") == 7
    assert "Files do not match the export" not in page.text


def test_bundle_page_without_recommendation_or_latencies(tmp_path: Path) -> None:
    text = bundle_page(write_bundle(tmp_path / "bundle", timed=False, recommended=None).path).text
    assert "no variant met the limits" in text
    assert "Accuracy of fp32: 83.3%" in text
    assert "Latencies were not measured at export" in text
    assert "p50 ms" not in text


def test_bundle_page_without_accuracy(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "bundle").path
    variants = [
        {**variant, "accuracy": {}}
        for variant in json.loads((path / "bundle.json").read_text())["variants"]
    ]
    assert (
        "Accuracy of int8: not measured"
        in bundle_page(alter_manifest(path, variants=variants)).text
    )


def test_bundle_page_shows_test_accuracy_and_confidence(tmp_path: Path) -> None:
    page = bundle_page(write_bundle(tmp_path / "bundle", confident=True).path)
    assert page.sections[:3] == ["summary", "variants", "confidence"]
    for words in (
        "Test accuracy of int8: 77.5% of 40 test images (95% interval 62.0% to 88.0%)",
        "validation accuracy 80.0% [66.0%, 93.0%] test accuracy 77.5% [62.0%, 88.0%]",
        "variant MB validation [95%] test [95%] lost",
        "fp32 1.420 0.083 [0.061, 0.112] 0.031 [0.019, 0.055] 0.520 → 0.440 0.310 → 0.290",
        "int8 1.000 not applied 0.083",
        "a class left out caught generated images caught",
        f"{UNKNOWN_METHOD} 95.0% 61.2% AUROC 0.862 [0.790, 0.910] 100.0% AUROC 0.999 [0.980, 1.000]",
        "by coverage variant 95% fp32 0.231 int8 0.231",
        "unknown_score, float32 [batch]",
    ):
        assert words in page.text, words


def test_bundle_page_without_records_has_no_empty_headings(tmp_path: Path) -> None:
    page = bundle_page(write_bundle(tmp_path / "bundle").path)
    assert "confidence" not in page.sections
    for word in ("test", "temperature", "unknown_score", "Prediction sets"):
        assert word not in page.text.lower().replace("latest", ""), word


def test_bundle_page_lists_activation_maps_among_outputs(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "bundle").path
    assert "activation_maps" not in bundle_page(path).text
    variants = json.loads((path / "bundle.json").read_text())["variants"]
    variants[0]["parity"]["activation_maps"] = {
        "images": 8, "kind": "validation", "max_abs_diff": 1e-5, "sqnr_db": 110.0,
    }  # fmt: skip
    text = bundle_page(alter_manifest(path, variants=variants)).text
    assert "activation_maps, float32 [batch, classes, h, w]" in text


def test_bundle_page_reports_altered_and_missing_files(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    bundle.variant("int8").write_bytes(b"another")
    bundle.client.unlink()
    text = bundle_page(bundle.path).text
    assert (
        "Files do not match the export: int8.onnx is altered and predict.py is missing. "
        "Copy or export the bundle again." in text
    )
    assert text.count(" as proven") == 1 + 5


def test_large_golden_images_are_not_embedded(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    (bundle.golden / "0_photo.jpg").write_bytes(b"x" * 400_000)
    page = bundle_page(bundle.path)
    assert page.tags.count("img") == 1
    assert "1 image not shown" in page.text


def test_file_outside_the_bundle_is_refused(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "bundle").path
    (tmp_path / "secret.png").write_bytes(b"secret")
    golden = json.loads((path / "bundle.json").read_text())["golden"]
    golden["images"][0]["file"] = "../secret.png"
    with pytest.raises(BundleError, match="outside the bundle"):
        bundle_page(alter_manifest(path, golden=golden))


@pytest.mark.parametrize(
    "changes",
    [
        {"variants": []},
        {"variants": [{}]},
        {"labels": 3},
        {"golden": {}},
        {"run": "x"},
        {"run": {"id": "0", "model": "m"}},
        {"new": 1},
        {"recommended": "int4"},
        {"preprocessing": {}},
        {"labels": []},
    ],
)
def test_broken_manifest_is_refused_in_one_sentence(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(
        BundleError, match=r"bundle\.json is broken: .* Copy or export the bundle again"
    ):
        read_bundle_record(alter_manifest(write_bundle(tmp_path / "bundle").path, **changes))


def test_labels_are_escaped(tmp_path: Path) -> None:
    page = bundle_page(write_bundle(tmp_path / "bundle", labels=["<script>", "b"]).path)
    assert "script" not in page.tags
    assert "<script>, b" in page.text


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_bundle_page_fits_a_phone_without_console_errors(tmp_path: Path) -> None:
    labels = [f"a label that is rather long {number}" for number in range(200)]
    assert (
        seen_in_browser(
            render_bundle_report(read_bundle_record(write_bundle(tmp_path / "bundle", labels).path))
        )
        == 0
    )
