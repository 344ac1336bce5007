from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgetl.core.artifacts.bundle import ActivationMapParity, read_bundle_record
from edgetl.export.model_card import model_card
from tests.helpers.runs import UNKNOWN_METHOD, write_bundle


def render_card(path: Path, confident: bool) -> str:
    directory = write_bundle(path / "bundle", confident=confident)
    return model_card(read_bundle_record(directory.path).manifest)


def test_card_tells_validation_from_test_accuracy(tmp_path: Path) -> None:
    card = render_card(tmp_path, confident=True)
    assert "**Accuracy:** 83.3% top-1 (95% interval 66.0% to 93.0%)" in card
    assert "on 30 validation images" in card.replace("\n", " ")
    assert "**Test accuracy:** 77.5% top-1 (95% interval 62.0% to 88.0%)" in card
    header, line = (row for row in card.splitlines() if row.startswith(("| variant", "| int8 |")))
    assert [cell.strip() for cell in header.split("|")][5:7] == ["validation top-1", "test top-1"]
    assert [cell.strip() for cell in line.split("|")][5:7] == ["80.0%", "77.5%"]
    assert header.count("|") == line.count("|")


def test_card_describes_confidence_of_each_variant(tmp_path: Path) -> None:
    card = render_card(tmp_path, confident=True)
    for sentence in (
        "- fp32: Calibration error 0.083 [0.061, 0.112] on 30 validation images, 0.031 "
        "[0.019, 0.055] after division of the logits by the temperature 1.42.",
        "- int8: Calibration error 0.083 [0.061, 0.112] on 30 validation images; a temperature "
        "would not help (0.031 [0.019, 0.055]) and is left out.",
        f"- fp32: Unknown images by the {UNKNOWN_METHOD}: 95.0% of 30 validation images accepted; "
        "a class left out 61.2% caught, AUROC 0.862 [0.790, 0.910]; "
        "generated images 100.0% caught, AUROC 0.999 [0.980, 1.000].",
        "- int8: Prediction sets: all classes with a probability of at least 0.231 for 95% coverage.",
        "above 1 the image is of no known class",
    ):
        assert sentence in card, sentence


def test_card_without_records_has_no_empty_headings(tmp_path: Path) -> None:
    card = render_card(tmp_path, confident=False)
    for words in ("Confidence", "Test accuracy", "unknown_score", "validation top-1", "$"):
        assert words not in card, words
    assert "\n\n\n" not in card[: card.index("## Variants")]


def test_card_omits_records_that_a_variant_lacks(tmp_path: Path) -> None:
    directory = write_bundle(tmp_path / "bundle", confident=True)
    manifest = read_bundle_record(directory.path).manifest
    first, second = manifest.variants
    only = replace(second, calibration=None, unknown=None, prediction_sets=(), test_accuracy=None)
    card = model_card(replace(manifest, variants=(first, only)))
    assert "- fp32: Calibration" in card
    assert "- int8:" not in card
    (line,) = (row for row in card.splitlines() if row.startswith("| int8 |"))
    assert [cell.strip() for cell in line.split("|")][5:7] == ["80.0%", ""]


def test_card_lists_activation_maps_among_outputs(tmp_path: Path) -> None:
    manifest = read_bundle_record(write_bundle(tmp_path / "bundle").path).manifest
    assert "activation_maps" not in model_card(manifest)
    first, second = manifest.variants
    parity = replace(
        first.parity, activation_maps=ActivationMapParity(8, "validation", 1e-5, 110.0, 1e-3)
    )
    card = model_card(replace(manifest, variants=(replace(first, parity=parity), second)))
    assert "`probabilities`, float32 `[batch, classes]`, and `activation_maps`" in card
