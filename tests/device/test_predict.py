"""`predict`: arguments, order, errors and the check on the golden images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgetl.core.artifacts.confidence import CoverageLevel
from edgetl.core.errors import BundleError, ConfigError, DataError
from edgetl.device.predict import Prediction, predict
from edgetl.device.runtime.bundle import open_bundle
from edgetl.device.runtime.classifier import open_classifier
from edgetl.device.runtime.images import load_image
from tests.helpers.bundles import LABELS, colour_logits, write_pictures
from tests.helpers.confidence import add_confidence

MakeBundle = Callable[..., Path]


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    return write_pictures(tmp_path / "photos", 3)


def test_predict_returns_probabilities_of_classifier(
    make_bundle: MakeBundle, photos: list[Path]
) -> None:
    bundle = make_bundle()
    predictions = list(predict(bundle, photos))
    assert [prediction.path for prediction in predictions] == photos
    classifier = open_classifier(bundle)
    for prediction in predictions:
        probabilities = classifier.classify(load_image(prediction.path))
        assert dict(prediction.top_labels) == dict(
            zip(LABELS, map(float, probabilities), strict=True)
        )
        assert prediction.top_labels[0][1] == probabilities.max()
        assert repr(prediction) == (
            f"Prediction({str(prediction.path)!r}, {prediction.top_labels[0][0]!r}, "
            f"{probabilities.max():.4f})"
        )


def test_predict_accepts_all_kinds_of_arguments(
    make_bundle: MakeBundle, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle()
    expected = list(predict(bundle, photos))
    folder = photos[0].parent
    monkeypatch.chdir(folder.parent)
    for images in (folder, str(folder), str(folder / "*.png"), [str(photos[0]), folder]):
        assert list(predict(str(bundle), images)) == expected
    assert list(predict(open_bundle(bundle), iter(photos))) == expected
    relative = predict("bundle", "photos/[0-9].png")
    assert [prediction.top_labels for prediction in relative] == [
        prediction.top_labels for prediction in expected
    ]


def test_predict_yields_errors_in_order(
    make_bundle: MakeBundle, photos: list[Path], tmp_path: Path
) -> None:
    broken, empty = tmp_path / "broken.png", tmp_path / "empty"
    broken.write_bytes(b"no image")
    empty.mkdir()
    first, second, third, fourth, fifth = predict(
        make_bundle(), ["missing.jpg", photos[0], empty, broken, photos[1]], top_k=1
    )
    assert str(first.error).startswith("missing.jpg not found")
    assert (second.error, fifth.error) == (None, None)
    assert len(second.top_labels) == len(fifth.top_labels) == 1
    assert str(third.error).startswith(f"No images in the folder {empty}")
    assert str(fourth.error).startswith(f"{broken}: ")
    assert first.top_labels == third.top_labels == fourth.top_labels == ()
    assert (first.path, third.path, fourth.path) == (Path("missing.jpg"), empty, broken)


def test_predict_raises_before_first_prediction(
    make_bundle: MakeBundle, photos: list[Path]
) -> None:
    bundle = make_bundle()
    with pytest.raises(DataError, match=r"a\.jpg not found(.|\n)*b\.jpg not found"):
        predict(bundle, ["a.jpg", "b.jpg"])
    with pytest.raises(DataError, match="No images"):
        predict(bundle, [])
    with pytest.raises(ConfigError, match="top_k must be >= 1, got 0"):
        predict(bundle, photos, top_k=0)
    with pytest.raises(BundleError, match="do not match the reference"):
        predict(make_bundle("wrong", error=1.0), photos)


def largest_logits(photos: list[Path]) -> list[float]:
    return [float(colour_logits(load_image(photo)).max()) for photo in photos]


def test_predict_labels_unknown_images(make_bundle: MakeBundle, photos: list[Path]) -> None:
    expected = list(predict(make_bundle(), photos))
    logits = largest_logits(photos)
    threshold = sorted(logits)[1] - 0.01
    predictions = list(predict(add_confidence(make_bundle("new"), threshold), photos))
    assert [prediction.is_unknown for prediction in predictions] == [
        logit < threshold for logit in logits
    ]
    assert {prediction.is_unknown for prediction in predictions} == {True, False}
    for prediction, plain, logit in zip(predictions, expected, logits, strict=True):
        assert prediction.unknown_score == pytest.approx(1 + threshold - logit, abs=1e-4)
        assert prediction.top_labels == plain.top_labels
        assert prediction.label == (
            "unknown" if prediction.is_unknown else prediction.top_labels[0][0]
        )
        closest = f"'unknown (closest: {plain.top_labels[0][0]})'"
        assert (closest in repr(prediction)) == prediction.is_unknown


def test_model_without_unknown_score_gives_none(
    make_bundle: MakeBundle, photos: list[Path]
) -> None:
    for prediction in predict(make_bundle(), photos):
        assert prediction.unknown_score is None
        assert not prediction.is_unknown
        assert prediction.label == prediction.top_labels[0][0]
        assert prediction.label_set is None
    (missing, _) = predict(make_bundle("other"), ["missing.jpg", photos[0]])
    assert missing.label is None
    assert not missing.is_unknown


def test_score_at_threshold_is_not_unknown() -> None:
    """The score of a known image may be 1 exactly."""
    assert not Prediction(Path("a"), (("cat", 0.9),), unknown_score=1.0).is_unknown
    assert Prediction(Path("a"), (("cat", 0.9),), unknown_score=1.0001).is_unknown


def test_class_named_unknown_differs_from_unknown_image() -> None:
    labels = (("unknown", 0.9), ("cat", 0.1))
    known_image = Prediction(Path("a"), labels, unknown_score=0.2)
    foreign_image = Prediction(Path("a"), labels, unknown_score=2.0)
    assert (known_image.label, known_image.is_unknown) == ("unknown", False)
    assert (foreign_image.label, foreign_image.is_unknown) == ("unknown", True)


@pytest.mark.parametrize("min_probability", [0.0, 0.3, 0.5, 0.7, 1.1])
def test_prediction_sets_hold_probable_labels(
    make_bundle: MakeBundle, photos: list[Path], min_probability: float
) -> None:
    levels = (CoverageLevel(0.5, 2.0), CoverageLevel(0.95, min_probability))
    bundle = add_confidence(make_bundle(), 0.0, levels=levels)
    for prediction in predict(bundle, photos, top_k=1, coverage=0.95):
        image = load_image(prediction.path)
        probabilities = open_classifier(bundle).classify(image)
        order = sorted(range(len(LABELS)), key=lambda index: -probabilities[index])
        assert prediction.label_set == tuple(
            LABELS[index] for index in order if probabilities[index] >= min_probability
        )
        assert len(prediction.top_labels) == 1
    sizes = {0.0: {2}, 1.1: {0}}.get(min_probability)
    if sizes is not None:
        predictions = predict(bundle, photos, coverage=0.95)
        assert {len(prediction.label_set or ()) for prediction in predictions} == sizes


def test_temperature_changes_probabilities_not_labels(
    make_bundle: MakeBundle, photos: list[Path]
) -> None:
    plain = list(predict(make_bundle(), photos))
    calibrated = list(predict(add_confidence(make_bundle("new"), 0.0, temperature=3.0), photos))
    for before, after in zip(plain, calibrated, strict=True):
        assert [label for label, _ in before.top_labels] == [label for label, _ in after.top_labels]
        logits = colour_logits(load_image(before.path)).astype(np.float64) / 3
        expected = np.exp(logits).max() / np.exp(logits).sum()
        assert after.top_labels[0][1] == pytest.approx(expected, abs=1e-5)
        assert after.top_labels[0][1] < before.top_labels[0][1]


def test_predict_rejects_missing_coverage(make_bundle: MakeBundle, photos: list[Path]) -> None:
    with pytest.raises(ConfigError, match="no prediction sets: it was exported without"):
        predict(make_bundle(), photos, coverage=0.95)
    confident = add_confidence(make_bundle("new"), 0.0)
    with pytest.raises(
        ConfigError, match=r"no prediction sets of coverage 0\.8. Choose one of 0\.9, 0\.95"
    ):
        predict(confident, photos, coverage=0.8)
