"""`predict`: arguments, order, errors and the check on the golden images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgetl.core.errors import BundleError, ConfigError, DataError
from edgetl.device.predict import predict
from edgetl.device.runtime.bundle import open_bundle
from edgetl.device.runtime.classifier import open_classifier
from edgetl.device.runtime.images import load_image
from tests.helpers.bundles import LABELS, write_pictures

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
