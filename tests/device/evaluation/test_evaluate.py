"""`evaluate`: figures against scikit-learn, the gate, unreadable images, unknown images, files."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import sklearn.metrics
from numpy.typing import NDArray
from PIL import Image

from edgetl.core.artifacts.bundle import read_bundle_manifest, write_bundle_manifest
from edgetl.core.artifacts.evaluation import (
    EvaluationFigures,
    EvaluationResult,
    read_evaluation,
)
from edgetl.core.config.evaluate import EvaluateConfig, EvaluationLimits, RecallLimit
from edgetl.core.errors import BenchError, BundleError, ConfigError, DataError, EdgetlError
from edgetl.core.files import sha256_file
from edgetl.core.paths import BundleDirectory
from edgetl.device.evaluation import image_loop
from edgetl.device.evaluation.corruptions import corrupt
from edgetl.device.evaluation.evaluate import evaluate
from edgetl.device.runtime.classifier import Classifier, open_classifier
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import resize_around_crop
from tests.helpers.bundles import CONTRACT, LABELS, colour_logits, write_pictures
from tests.helpers.confidence import LEVELS, add_confidence

EXACT = {"abs": 1e-9, "rel": 0}
MakeBundle = Callable[..., Path]


@pytest.fixture(autouse=True)
def _current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Folder with 30 photos whose labels are mostly those of the color model."""
    generator = np.random.default_rng(3)
    folder = tmp_path / "photos"
    for index in range(30):
        size = (int(generator.integers(40, 70)), int(generator.integers(40, 70)), 3)
        tint = generator.integers(0, 200, 3)
        pixels = (generator.integers(0, 56, size) + tint).astype(np.uint8)
        label = LABELS[int(colour_logits(pixels).argmax()) if index % 4 else index % 2]
        path = folder / label / ("north" if index % 3 else "south") / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture
def bundle(make_bundle: MakeBundle) -> Path:
    """Bundle with two variants, unknown scores and prediction sets."""
    return make_bundle("confident", variants=("fp32", "int8"))


def disturb(bundle: Path, variant: str, shift: float) -> None:
    """Add to the first logit of a variant, whose tolerance is widened."""
    directory = BundleDirectory(bundle)
    manifest = read_bundle_manifest(directory)
    variants = []
    for record in manifest.variants:
        if record.name == variant:
            path = bundle / record.file
            model = onnx.load(path)
            for tensor in model.graph.initializer:
                if tensor.name == "bias":
                    values = onnx.numpy_helper.to_array(tensor).copy()
                    values[0] += shift
                    tensor.CopyFrom(onnx.numpy_helper.from_array(values, "bias"))
            path.write_bytes(model.SerializeToString())
            parity = replace(record.parity, path=replace(record.parity.path, tolerance=2.0))
            record = replace(record, sha256=sha256_file(path), parity=parity)
        variants.append(record)
    write_bundle_manifest(directory, replace(manifest, variants=tuple(variants)))


def figures_of(result: EvaluationResult, variant: str) -> EvaluationFigures:
    figures = next(item.figures for item in result.variants if item.name == variant)
    assert figures is not None
    return figures


def classify(
    classifier: Classifier, folder: Path
) -> tuple[list[Path], NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """Return paths, classes, probabilities and unknown scores, computed image by image."""
    paths = sorted(folder.rglob("*.png"))
    outputs = [classifier.run(classifier.prepare_input(load_image(path))) for path in paths]
    scores = [output.unknown_scores for output in outputs if output.unknown_scores is not None]
    labels = np.array([LABELS.index(path.relative_to(folder).parts[0]) for path in paths])
    probabilities = np.concatenate([output.probabilities for output in outputs])
    return paths, labels, probabilities, np.concatenate(scores) if scores else np.empty(0)


def test_figures_equal_scikit_learn(bundle: Path, photos: Path) -> None:
    disturb(bundle, "int8", 1.2)
    add_confidence(bundle, threshold=2.0, temperature=2.0)
    result = evaluate(EvaluateConfig(bundle, photos))
    for variant in ("fp32", "int8"):
        _, labels, probabilities, scores = classify(open_classifier(bundle, variant), photos)
        predicted = probabilities.argmax(1)
        figures = figures_of(result, variant)
        accuracy = sklearn.metrics.accuracy_score(labels, predicted)
        assert 0.4 < accuracy < 1
        assert figures.accuracy.value == pytest.approx(accuracy, **EXACT)
        balanced = sklearn.metrics.balanced_accuracy_score(labels, predicted)
        assert figures.balanced_accuracy.value == pytest.approx(balanced, **EXACT)
        macro = sklearn.metrics.f1_score(labels, predicted, average="macro")
        assert figures.macro_f1.value == pytest.approx(macro, **EXACT)
        exact = probabilities.astype(np.float64)
        brier = sklearn.metrics.brier_score_loss(labels, exact[:, 1], scale_by_half=False)
        # scikit-learn completes the first class to 1; float32 probabilities do to 1e-7 only.
        assert figures.calibration.brier.value == pytest.approx(brier, abs=1e-6)
        squares = ((exact - np.eye(2)[labels]) ** 2).sum(1)
        assert figures.calibration.brier.value == pytest.approx(squares.mean(), **EXACT)
        matrix = sklearn.metrics.confusion_matrix(labels, predicted)
        assert figures.confusion_matrix(tuple(LABELS)) == matrix.tolist()
        assert figures.unknown is not None
        assert 0 < figures.unknown.rejected.value == (scores > 1).mean() < 1
        wrong = predicted != labels
        assert figures.unknown.rejected_mistakes is not None
        assert figures.unknown.rejected_mistakes.value == (scores[wrong] > 1).mean()
        for level, sets in zip(LEVELS, figures.prediction_sets, strict=True):
            members = exact >= level.min_probability
            assert sets.covered.value == members[np.arange(30), labels].mean()
            assert sets.mean_size.value == pytest.approx(members.sum(1).mean())
            assert (sets.empty, sets.single) == (
                (members.sum(1) == 0).mean(),
                (members.sum(1) == 1).mean(),
            )
    (difference,) = result.comparisons
    assert (difference.baseline, difference.candidate) == ("fp32", "int8")
    assert 0 < difference.equal_labels < 30


def test_result_is_written_and_never_overwritten(bundle: Path, photos: Path) -> None:
    first, second = (evaluate(EvaluateConfig(bundle, photos)) for _ in range(2))
    assert first.path != second.path
    assert {first.path.parent, second.path.parent} == {Path("evaluation")}  # type: ignore[union-attr]
    assert first.path is not None
    assert read_evaluation(first.path) == first
    assert replace(first, created="", seconds=0) == replace(second, created="", seconds=0)
    with pytest.raises(BenchError, match="already exists; results are never overwritten"):
        evaluate(EvaluateConfig(bundle, photos, output=first.path))
    result = evaluate(EvaluateConfig(bundle, photos, output="new/result.json"))
    assert result.path == Path("new/result.json")


def test_every_image_is_decoded_once(
    bundle: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    monkeypatch.setattr(
        image_loop, "load_image", lambda path: decoded.append(path) or load_image(path)
    )
    evaluate(EvaluateConfig(bundle, photos))
    assert len(decoded) == len(set(decoded)) == 30


def test_predictions_are_written_for_every_image(bundle: Path, photos: Path) -> None:
    add_confidence(bundle, threshold=1.0)
    (photos / "cat/broken.png").write_bytes(b"no image")
    result = evaluate(EvaluateConfig(bundle, photos, predictions="out/all.csv"))
    with Path("out/all.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    (photos / "cat/broken.png").unlink()
    paths, _, probabilities, scores = classify(open_classifier(bundle, "int8"), photos)
    assert [row for row in rows if row["error"]] == [
        {**dict.fromkeys(rows[0], ""), "path": str(photos / "cat/broken.png"), "label": "cat",
         "error": "cannot be decoded (not a known image format)."}
    ]  # fmt: skip
    by_path = {row["path"]: row for row in rows if row["variant"] == "int8"}
    assert len(by_path) == result.data.images == 30
    for path, row_probabilities, score in zip(paths, probabilities, scores, strict=True):
        row = by_path[str(path)]
        assert row["predicted"] == LABELS[row_probabilities.argmax()]
        assert float(row["probability"]) == pytest.approx(row_probabilities.max(), abs=1e-6)
        label = row_probabilities[LABELS.index(row["label"])]
        assert float(row["label_probability"]) == pytest.approx(label, abs=1e-6)
        assert float(row["unknown_score"]) == pytest.approx(score, rel=1e-5)
    with pytest.raises(BenchError, match="Cannot write the predictions"):
        evaluate(EvaluateConfig(bundle, photos, predictions="out/all.csv"))


def test_unreadable_images_are_listed_and_not_scored(bundle: Path, photos: Path) -> None:
    plain = evaluate(EvaluateConfig(bundle, photos))
    (photos / "cat/empty.png").touch()
    (photos / "dog/broken.jpg").write_bytes(b"no image")
    result = evaluate(EvaluateConfig(bundle, photos, group_by=("1",)))
    assert [Path(image.path).name for image in result.data.unscored] == ["empty.png", "broken.jpg"]
    assert result.data.unscored[0].reason == "the file is empty (0 bytes)."
    assert result.unscored_count == 2
    assert result.data.images == 30
    assert figures_of(result, "fp32").accuracy == figures_of(plain, "fp32").accuracy
    groups = figures_of(result, "fp32").groups["folder level 1"]
    assert sum(group.images for group in groups.values()) == 30


def test_images_that_are_all_unreadable_are_an_error(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "bad/cat").mkdir(parents=True)
    (tmp_path / "bad/cat/a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"None of the 1 image of .*bad can be read. .*a\.png"):
        evaluate(EvaluateConfig(bundle, tmp_path / "bad"))


def test_file_name_of_invalid_utf8_is_not_scored(bundle: Path, photos: Path) -> None:
    try:
        (photos / "cat/\udcff.png").touch()
    except OSError:
        pytest.skip("this file system takes only valid names")
    result = evaluate(EvaluateConfig(bundle, photos))
    assert result.path is not None
    (image,) = read_evaluation(result.path).data.unscored
    assert image.path.endswith("\\udcff.png")
    assert "not valid UTF-8" in image.reason


def test_groups_partition_the_images(bundle: Path, photos: Path) -> None:
    figures = figures_of(evaluate(EvaluateConfig(bundle, photos, group_by=("1",))), "fp32")
    groups = figures.groups["folder level 1"]
    assert set(groups) == {"north", "south"}
    hits = sum(group.images * group.accuracy.value for group in groups.values())
    assert hits == pytest.approx(figures.correct)
    _, labels, probabilities, _ = classify(open_classifier(bundle), photos)
    is_north = [path.parent.name == "north" for path in sorted(photos.rglob("*.png"))]
    correct = probabilities.argmax(1) == labels
    assert groups["north"].accuracy.value == pytest.approx(correct[is_north].mean())


def test_variant_that_fails_the_gate_is_not_evaluated(
    make_bundle: MakeBundle, photos: Path
) -> None:
    bundle = make_bundle(variants=("fp32", "int8"))
    disturb(bundle, "int8", 5.0)
    result = evaluate(EvaluateConfig(bundle, photos))
    (failed,) = result.failed_variants
    assert failed.name == "int8"
    assert failed.figures is None
    assert failed.gate.passed is False
    assert "logits differ by 5" in str(failed.gate.reason)
    assert result.comparisons == ()
    figures_of(result, "fp32")
    with pytest.raises(BundleError, match=r"No variant passed .* int8: logits differ by 5"):
        evaluate(EvaluateConfig(bundle, photos, variants=("int8",)))


def test_unknown_images_are_scored(bundle: Path, photos: Path, tmp_path: Path) -> None:
    add_confidence(bundle, threshold=2.0)
    foreign = tmp_path / "foreign"
    write_pictures(foreign, 6)
    (foreign / "broken.png").write_bytes(b"no image")
    result = evaluate(
        EvaluateConfig(bundle, photos, unknown=foreign, predictions="all.csv", output="a.json")
    )
    (foreign / "broken.png").unlink()
    classifier = open_classifier(bundle)
    _, _, _, known_scores = classify(classifier, photos)
    unknown_scores = np.array(
        [
            classifier.run(classifier.prepare_input(load_image(path))).unknown_scores
            for path in sorted(foreign.glob("*.png"))
        ]
    ).ravel()
    unknown = figures_of(result, "fp32").unknown
    assert unknown is not None
    assert unknown.unknown_images is not None
    assert unknown.unknown_images.images == 6
    assert unknown.unknown_images.auroc.value == pytest.approx(
        sklearn.metrics.roc_auc_score(
            np.repeat([0, 1], [30, 6]), np.concatenate([known_scores, unknown_scores])
        ),
        **EXACT,
    )
    assert unknown.unknown_images.caught.value == pytest.approx((unknown_scores > 1).mean())
    assert result.unknown_data is not None
    assert result.unknown_data.images == 6
    assert len(result.unknown_data.unscored) == result.unscored_count == 1
    with Path("all.csv").open(newline="", encoding="utf-8") as stream:
        unlabeled = [row for row in csv.DictReader(stream) if not row["label"]]
    assert len(unlabeled) == 6 * 2 + 1


def test_corruptions_are_counted_at_network_resolution(bundle: Path, photos: Path) -> None:
    config = EvaluateConfig(bundle, photos, corruptions=("brightness",), severities=(5, 1))
    corruptions = figures_of(evaluate(config), "fp32").corruptions
    assert [(entry.kind, entry.severity) for entry in corruptions] == [
        ("brightness", 1),
        ("brightness", 5),
    ]
    classifier = open_classifier(bundle)
    hits = 0
    for index, path in enumerate(sorted(photos.rglob("*.png"))):
        square = resize_around_crop(load_image(path), CONTRACT)
        probabilities = classifier.classify(corrupt(square, "brightness", 5, index))
        hits += LABELS[probabilities.argmax()] == path.relative_to(photos).parts[0]
    assert corruptions[1].accuracy.value == pytest.approx(hits / 30)
    assert corruptions[1].images == 30
    assert 0 <= corruptions[1].calibration_error <= 1
    assert corruptions[1].rejected is None


def test_single_onnx_file_is_evaluated_without_gate(
    bundle: Path, photos: Path, tmp_path: Path
) -> None:
    add_confidence(bundle, threshold=1.0)
    file = tmp_path / "model.onnx"
    file.write_bytes((bundle / "fp32.onnx").read_bytes())
    result = evaluate(EvaluateConfig(file, photos, output="single.json"))
    expected = evaluate(EvaluateConfig(bundle, photos, output="bundle.json"))
    assert figures_of(result, "model").accuracy == figures_of(expected, "fp32").accuracy
    assert result.variants[0].gate.checked is False
    assert "was not checked" in result.notes[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variants": ("int4",)}, "has no variant 'int4'"),
        ({"provider": "quantum"}, "Unknown provider"),
        ({"unknown": "nowhere"}, "nowhere of unknown is not a folder"),
        ({"unknown": "photos"}, "has no output unknown_score, which unknown needs"),
        ({"corruptions": ("rain",)}, "corruptions must be all or among gaussian_noise"),
        (
            {"limits": EvaluationLimits(min_recall=(RecallLimit("cow", 0.5),))},
            "min_recall names cow, but the labels of the bundle are: cat, dog",
        ),
    ],
)
def test_impossible_options_are_rejected(
    bundle: Path, photos: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(EdgetlError, match=message):
        evaluate(EvaluateConfig(bundle, photos, **options))
    assert not os.path.exists("evaluation")  # noqa: PTH110


def test_notes_name_missing_classes_and_split(bundle: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "data/val/cat")
    result = evaluate(EvaluateConfig(bundle, tmp_path / "data"))
    assert result.data.split == "val"
    assert result.data.per_class == {"cat": 4, "dog": 0}
    assert any("may be optimistic" in note for note in result.notes)
    assert any("No images of: dog." in note for note in result.notes)
    scores = figures_of(result, "fp32").per_class["dog"]
    assert scores.precision is scores.recall is scores.f1 is None


def test_limit_error_is_raised_as_config_error(bundle: Path, photos: Path) -> None:
    limits = EvaluationLimits(min_recall=(RecallLimit("cow", 0.5),))
    with pytest.raises(ConfigError):
        evaluate(EvaluateConfig(bundle, photos, limits=limits))


def test_result_is_one_json_object(bundle: Path, photos: Path) -> None:
    result = evaluate(EvaluateConfig(bundle, photos, output="result.json"))
    content = json.loads(Path("result.json").read_text(encoding="utf-8"))
    assert content == json.loads(json.dumps(result.to_json()))
    assert (content["schema"], content["kind"]) == (1, "evaluation")
