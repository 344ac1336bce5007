"""Explanations: activation maps of the device, their colors and drawings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgetl.core.errors import BundleError, DataError
from edgetl.device.predict import predict
from edgetl.device.runtime.classifier import open_classifier
from edgetl.device.runtime.explanation import Explanation, color_heat, overlay_heat
from edgetl.device.runtime.onnx_file import read_without_activation_maps
from edgetl.device.runtime.session import create_session
from tests.helpers.bundles import write_pictures
from tests.helpers.confidence import add_confidence
from tests.helpers.explained_bundles import CELL_SIDE, CELLS, color_model, write_color_bundle

SIDE = CELLS * CELL_SIDE


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_color_bundle(tmp_path / "bundle")


def composite(left: str, right: str, boundary: int = SIDE // 2) -> NDArray[np.uint8]:
    """Return a picture of two colors."""
    picture = Image.new("RGB", (SIDE, SIDE), right)
    picture.paste(left, (0, 0, boundary, SIDE))
    return np.asarray(picture)


def make_explanation(activation_map: list[list[float]], side: int = SIDE) -> Explanation:
    crop = np.full((side, side, 3), 200, np.uint8)
    return Explanation("a", 0.75, np.array(activation_map, np.float32), crop)


# --- the map


@pytest.mark.parametrize(
    ("left", "right", "boundary", "label"),
    [
        ("red", "blue", 24, "red"),
        ("red", "blue", 8, "blue"),
        ("blue", "lime", 24, "blue"),
        ("blue", "lime", 8, "green"),
    ],
)
def test_evidence_lies_in_the_part_of_its_class(
    bundle: Path, left: str, right: str, boundary: int, label: str
) -> None:
    image = composite(left, right, boundary)
    explanation = open_classifier(bundle, explain=True).explain(image)
    assert explanation.label == label
    heat = explanation.heat()
    is_left = label == {"lime": "green"}.get(left, left)
    part = heat[:, :boundary] if is_left else heat[:, boundary:]
    assert part.sum() > 0.9 * heat.sum() > 0


def test_map_is_logit_above_mean_of_all_labels(bundle: Path) -> None:
    classifier = open_classifier(bundle, explain=True)
    image = composite("red", "blue", 24)
    outputs = classifier.run(classifier.prepare_input(image))
    assert outputs.activation_maps is not None
    explanation = classifier.explain(image)
    # The classifier is linear: red has the logits (4, -2, -2), blue (-2, -2, 4).
    expected = np.tile(np.float32([4, 4, 4, -2]), (CELLS, 1))
    np.testing.assert_allclose(outputs.activation_maps[0, 0], expected, atol=1e-5)
    np.testing.assert_allclose(explanation.activation_map, expected, atol=1e-5)
    np.testing.assert_allclose(
        explanation.activation_map.mean(),
        outputs.logits[0, 0] - outputs.logits[0].mean(),
        atol=1e-5,
    )
    np.testing.assert_array_equal(explanation.crop, image)
    assert (
        repr(explanation) == f"Explanation('red', {explanation.probability:.4f}, 4 x 4 locations)"
    )


def test_crop_is_the_part_that_the_network_saw(bundle: Path) -> None:
    wide = np.zeros((2 * SIDE, 6 * SIDE, 3), np.uint8)
    wide[:, 2 * SIDE : 4 * SIDE] = 255
    explanation = open_classifier(bundle, explain=True).explain(wide)
    assert explanation.crop.shape == (SIDE, SIDE, 3)
    assert explanation.crop[:, 1:-1].min() == 255


# --- heat


def test_heat_is_positive_part_scaled_to_one() -> None:
    heat = make_explanation([[4.0, 2.0], [0.0, -8.0]]).heat()
    assert heat.shape == (SIDE, SIDE)
    assert (heat[0, 0], heat[0, -1], heat[-1, 0], heat[-1, -1]) == (1, 0.5, 0, 0)
    # The centers of the cells keep their value, and the middle is the mean of all.
    assert heat[SIDE // 2 - 1 : SIDE // 2 + 1, SIDE // 2 - 1 : SIDE // 2 + 1].mean() == (
        pytest.approx(1.5 / 4)
    )
    assert np.all(np.diff(heat, axis=1) <= 1e-6)


def test_heat_is_zero_without_positive_evidence() -> None:
    heat = make_explanation([[-1.0, -2.0], [-3.0, 0.0]]).heat()
    assert heat.max() == 0
    image = np.full((SIDE, SIDE, 3), 200, np.uint8)
    np.testing.assert_array_equal(np.unique(overlay_heat(image, heat)), [150])


# --- colors

# Linear RGB as seen without one kind of cone: Machado et al., 2009, severity 1.
COLOR_BLINDNESS = {
    "none": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
         [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
         [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
         [0.004733, 0.691367, 0.303900]]
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", COLOR_BLINDNESS)
def test_lightness_rises_evenly_for_all_kinds_of_sight(kind: str) -> None:
    colors = color_heat(np.linspace(0, 1, 11, dtype=np.float32)) / 255
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    luminance = np.clip(linear @ COLOR_BLINDNESS[kind].T, 0, 1) @ [0.2126, 0.7152, 0.0722]
    lightness = 116 * np.cbrt(luminance) - 16
    steps = np.diff(lightness)
    assert steps.min() > 3
    assert steps.max() < 3 * steps.min()
    assert lightness[-1] - lightness[0] > 60


def test_overlay_shows_photo_without_heat_and_color_with_it() -> None:
    image = np.tile(np.arange(0, 256, 8, dtype=np.uint8)[:, None, None], (1, SIDE, 3))
    cold = overlay_heat(image, np.zeros((SIDE, SIDE), np.float32))
    assert np.ptp(cold, axis=-1).max() == 0
    assert np.all(np.diff(cold[:, 0, 0].astype(int)) > 0)
    hot = overlay_heat(image, np.ones((SIDE, SIDE), np.float32))
    assert np.ptp(hot, axis=-1).min() > 50


# --- files


def test_saved_drawing_has_both_pictures_and_a_description(tmp_path: Path) -> None:
    explanation = make_explanation([[1.0, 0.0]])
    file = tmp_path / "new" / "a.png"
    explanation.save(file)
    with Image.open(file) as drawing:
        assert drawing.format == "PNG"
        assert drawing.text["Description"] == "a 0.7500"  # type: ignore[attr-defined]
        pixels = np.asarray(drawing)
    assert pixels.shape[1] > 2 * 320
    assert (pixels[:320, :320] == 200).all()
    assert np.ptp(pixels[160, 330], axis=-1) > 50
    assert (pixels[325:] < 128).any(), "the caption"


@pytest.mark.parametrize(
    ("label", "caption"), [("Gänseblümchen", "Ganseblumchen"), ("鬱 🌷", "? ?")]
)
def test_label_of_any_script_can_be_saved(tmp_path: Path, label: str, caption: str) -> None:
    activation_map, crop = np.ones((2, 2), np.float32), np.zeros((8, 8, 3), np.uint8)
    explanation = Explanation(label, 1.0, activation_map, crop)
    explanation.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as drawing:
        assert drawing.text["Description"] == f"{label} 1.0000"  # type: ignore[attr-defined]
    expected = Explanation(caption, 1.0, activation_map, crop).draw()
    np.testing.assert_array_equal(explanation.draw(), expected)


def test_unwritable_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"Cannot write .*Choose another folder"):
        make_explanation([[1.0]]).save(tmp_path / "file" / "a.png")


# --- predict


def test_predict_explains_on_request(bundle: Path, tmp_path: Path) -> None:
    photos = write_pictures(tmp_path / "photos", 3)
    plain = list(predict(bundle, photos))
    explained = list(predict(bundle, photos, explain=True))
    assert [prediction.explanation for prediction in plain] == [None] * 3
    assert explained == plain
    for prediction in explained:
        explanation = prediction.explanation
        assert explanation is not None
        assert (explanation.label, explanation.probability) == prediction.top_labels[0]
        assert explanation.activation_map.shape == (CELLS, CELLS)


@pytest.mark.parametrize("threshold", [-100.0, 100.0], ids=["known", "unknown"])
def test_drawing_of_unknown_image_says_so(bundle: Path, tmp_path: Path, threshold: float) -> None:
    add_confidence(bundle, threshold)
    explanation = open_classifier(bundle, explain=True).explain(composite("red", "red"))
    explanation.save(tmp_path / "a.png")
    label = "unknown (closest: red)" if threshold > 0 else "red"
    with Image.open(tmp_path / "a.png") as drawing:
        assert drawing.info["Description"] == f"{label} {explanation.probability:.4f}"
    assert explanation.label == "red"


def test_model_without_maps_is_refused(tmp_path: Path) -> None:
    bundle = write_color_bundle(tmp_path / "bundle", explain=False)
    message = r"no output activation_maps. Export it again with --explain\.$"
    with pytest.raises(BundleError, match=message):
        predict(bundle, [bundle / "golden"], explain=True)
    with pytest.raises(BundleError, match=message):
        open_classifier(bundle / "fp32.onnx", explain=True)
    with pytest.raises(BundleError, match="explain=True"):
        open_classifier(bundle).explain(composite("red", "blue"))


# --- removal of the output


def test_ordinary_sessions_do_not_compute_the_maps(bundle: Path) -> None:
    file = bundle / "fp32.onnx"
    for explain in (False, True):
        session = create_session(file, activation_maps=explain)
        names = [output.name for output in session.get_outputs()]
        assert ("activation_maps" in names) is explain
        assert {"logits", "probabilities"} <= set(names)
    image = composite("red", "blue", 24)
    plain, explained = (
        open_classifier(file, explain=explain).classify(image) for explain in (False, True)
    )
    np.testing.assert_array_equal(plain, explained)


def test_graph_without_maps_is_the_one_exported_without(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(color_model().SerializeToString(deterministic=True))
    content = read_without_activation_maps(file)
    assert content is not None
    reduced, expected = onnx.load_from_string(content), color_model(explain=False)
    assert reduced.graph.SerializeToString(deterministic=True) == (
        expected.graph.SerializeToString(deterministic=True)
    )
    file.write_bytes(expected.SerializeToString())
    assert read_without_activation_maps(file) is None
