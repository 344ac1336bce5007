from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from edgetl.core.artifacts.run import read_run_record
from edgetl.core.errors import BundleError
from edgetl.report.run.page import render_run_report
from tests.helpers.bench_results import bench_result, bench_row
from tests.helpers.browser import CHROMIUM
from tests.helpers.pages import Page, seen_in_browser
from tests.helpers.runs import write_bundle, write_run

HOSTILE_TEXT = "<script>alert('x')</script>\"&{{ 7 * 7 }}$"
RUN_SECTIONS = [
    "result",
    "training",
    "classes",
    "confusion",
    "mistakes",
    "data",
    "recipe",
    "versions",
]


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = write_run(tmp_path_factory.mktemp("runs") / "run", dropout=0.4)
    write_bundle(run.bundle)
    result = bench_result(
        (bench_row("pytorch", "fp32", 9.0), bench_row("onnxruntime", "fp32", 3.0))
    )
    return render_run_report(read_run_record(run.path), [result])


def section(html: str, anchor: str) -> str:
    return Page(html.partition(f'<section id="{anchor}">')[2].partition("</section>")[0]).text


def test_run_page_is_complete_and_self_contained(html: str) -> None:
    page = Page(html)
    assert page.sections == [
        *RUN_SECTIONS,
        "variants",
        "summary",
        "table",
        "distributions",
        "rounds",
        "ledgers",
        "method",
    ]
    assert page.outside == []
    assert len(page.ids) == len(set(page.ids))
    assert "script" not in page.tags
    assert page.tags.count("img") == 1


def test_result_section_summarizes_the_run(html: str) -> None:
    text = section(html, "result")
    for words in (
        "83.3% of 30 images (95% interval",
        "97.5% of 120 images, +14.2 points against validation (overfitting gap)",
        "Best epoch: 6 of 7",
        "22 s on cpu in bf16: reading 2.0 s, frozen blocks 3.0 s, phase 1 8.0 s",
        "500,000 of 2,000,000 parameters (25%); pretrained weights: net.safetensors",
        "900 MiB",
    ):
        assert words in text, words


def test_curves_mark_phases_and_best_epoch(html: str) -> None:
    text = section(html, "training")
    assert text.count("best: epoch 6") == 3, "over epochs twice, over time once"
    assert text.count("phase 2") == 3
    assert "before the first epoch, 5.0 s" in text


def test_confusion_mistakes_data_and_recipe_sections(html: str) -> None:
    assert "25 of 30 validation images correct" in section(html, "confusion")
    assert "Most confident mistakes: 5 mistakes" in section(html, "mistakes")
    assert "train/roses/broken.jpg cannot be decoded." in section(html, "data")
    assert "2 images are in both parts." in section(html, "data")
    assert re.search(r"dropout 0\.4 0\.2", section(html, "recipe"))
    assert "2.00× faster [1.60, 2.40]" in section(html, "variants")


def test_run_page_of_older_run_omits_missing_data(tmp_path: Path) -> None:
    page = Page(
        render_run_report(read_run_record(write_run(tmp_path / "run", older=True).path), [])
    )
    assert page.sections == RUN_SECTIONS
    assert page.tags.count("img") == 2, "the plots of the matrix and of the mistakes"
    assert "did not record the time of each epoch" in page.text
    assert "did not save its predictions" in page.text


def test_run_page_of_unfinished_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", finished=False)
    page = Page(render_run_report(read_run_record(run.path), []))
    assert page.sections == ["result", "training", "data", "recipe", "versions"]
    assert "Not finished" in page.text
    assert "Best epoch so far: 6 of 7" in page.text
    run.history.unlink()
    page = Page(render_run_report(read_run_record(run.path), []))
    assert page.sections == ["result", "data", "recipe", "versions"]
    assert "no epoch is complete yet" in page.text


def test_run_page_without_validation_images(tmp_path: Path) -> None:
    page = Page(
        render_run_report(read_run_record(write_run(tmp_path / "run", validated=False).path), [])
    )
    assert page.sections == ["result", "training", "data", "recipe", "versions"]
    assert "unknown, there were no validation images" in page.text


def test_test_figures_are_told_apart(tmp_path: Path) -> None:
    confusion = ((20, 1, 0), (0, 17, 3), (0, 1, 19))
    run = write_run(tmp_path / "run", confusion=confusion, tested=True)
    html = render_run_report(read_run_record(run.path), [])
    result = section(html, "result")
    sentence = "Test accuracy: 91.8% of 61 images (95% interval 82.2% to 96.4%), on images"
    assert sentence in result
    assert "Validation accuracy: 91.8% of 61 images" in result
    assert re.search(r"validation 61 91\.8% \[82\.2%, 96\.4%\] 0\.917", result)
    assert re.search(r"test 61 91\.8% \[82\.2%, 96\.4%\] 0\.917", result)
    assert "Test images by class" in section(html, "classes")
    assert "56 of 61 validation images correct" in section(html, "confusion")
    assert "56 of 61 test images correct" in section(html, "confusion")
    assert "test images 61" in section(html, "data")
    assert len(Page(html).ids) == len(set(Page(html).ids))


def test_run_page_with_test_but_no_validation_images(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", validated=False, tested=True)
    page = Page(render_run_report(read_run_record(run.path), []))
    expected = ["result", "training", "classes", "confusion", "data", "recipe", "versions"]
    assert page.sections == expected
    assert "25 of 30 test images correct" in page.text
    assert "validation images correct" not in page.text


def test_run_page_without_mistakes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ("a", "b"), ((3, 0), (0, 3)))
    page = Page(render_run_report(read_run_record(run.path), []))
    assert "All 6 validation images were classified correctly." in page.text
    assert "No classes were confused." in page.text


def test_many_classes_are_listed_as_confused_pairs(tmp_path: Path) -> None:
    classes = [f"class{number}" for number in range(50)]
    confusion = [
        [2 if true == predicted else int(predicted == (true + 1) % 50) for predicted in range(50)]
        for true in range(50)
    ]
    confusion[7][8] = 5
    html = render_run_report(
        read_run_record(write_run(tmp_path / "run", classes, confusion).path), []
    )
    text = section(html, "confusion")
    assert text.startswith("Confusion Most confused classes: 20 of 50 pairs")
    assert "images of the true class class7 class8 5 71%" in text
    assert "The 20 classes with the lowest F1" in section(html, "classes")


def test_text_from_run_is_escaped(tmp_path: Path) -> None:
    html = render_run_report(
        read_run_record(write_run(tmp_path / "run", (HOSTILE_TEXT, "b"), ((3, 2), (0, 3))).path), []
    )
    page = Page(html)
    assert "script" not in page.tags
    assert HOSTILE_TEXT in " ".join(page.words)


def test_broken_mistakes_sheet_is_omitted(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run.plots / "mistakes.png").write_bytes(b"\x89PNG" + b"x" * 400_000)
    page = Page(render_run_report(read_run_record(run.path), []))
    assert "img" not in page.tags
    assert "mistakes" in page.sections


def test_run_page_shows_the_confidence_of_its_bundle(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_bundle(run.bundle, confident=True)
    page = Page(render_run_report(read_run_record(run.path), []))
    assert page.sections[-2:] == ["variants", "confidence"]
    assert "Calibration of the probabilities" in page.text


def test_broken_bundle_raises_bundle_error(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    manifest = write_bundle(run.bundle).manifest
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "labels": []}))
    with pytest.raises(BundleError, match="no labels"):
        render_run_report(read_run_record(run.path), [])


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_run_page_fits_a_phone_without_console_errors(html: str) -> None:
    assert seen_in_browser(html) == 6
