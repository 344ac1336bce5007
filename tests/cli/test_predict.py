"""`edgetl predict` on the command line."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgetl.core.artifacts.confidence import CoverageLevel
from edgetl.device.runtime.classifier import open_classifier
from edgetl.device.runtime.images import load_image
from tests.helpers.confidence import add_confidence
from tests.helpers.explained_bundles import write_color_bundle

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def photos(tmp_path: Path, parts: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in sorted((parts / "val/good").iterdir())[:3]:
        shutil.copy(path, folder)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


def test_json_contains_predictions_and_errors(
    edgetl: Run, stock_bundle: Path, photos: Path
) -> None:
    process = edgetl("predict", stock_bundle, photos, "--json", "--top-k", 3)
    assert process.returncode == 1
    images = json.loads(process.stdout)["images"]
    assert len(images) == 4
    assert [bool(image["error"]) for image in images] == [True, False, False, False]
    for image in images[1:]:
        probabilities = [entry["probability"] for entry in image["top"]]
        assert len(probabilities) == 3
        assert probabilities == sorted(probabilities, reverse=True)
    assert "broken.png" in process.stderr
    assert "Cannot read 1 of the images; 3 are classified" in process.stderr
    assert "Traceback" not in process.stderr


def test_missing_files_do_not_stop_the_others(
    edgetl: Run, stock_bundle: Path, photos: Path
) -> None:
    process = edgetl(
        "predict",
        stock_bundle,
        "nothing.jpg",
        photos / "good_0000.jpg",
        photos / "*.txt",
        "--csv",
        "-k",
        1,
    )
    assert process.returncode == 1
    missing, photo, unmatched = csv.DictReader(io.StringIO(process.stdout))
    assert photo["label"]
    assert not photo["error"]
    assert (missing["path"], missing["label"]) == ("nothing.jpg", "")
    assert "not found" in missing["error"]
    assert "*.txt not found" in unmatched["error"]
    assert "Cannot read 2 of the images; 1 are classified" in process.stderr
    assert "nothing.jpg not found" in process.stderr
    assert "*.txt" in process.stderr


def test_csv_matches_table(
    edgetl: Run, stock_bundle: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # the path of the test folder may be long
    pattern = str(photos / "*.jpg")
    rows = list(
        csv.DictReader(
            io.StringIO(edgetl("predict", stock_bundle, pattern, "--csv", "-k", 1).stdout)
        )
    )
    table = edgetl("predict", stock_bundle, pattern, "-k", 1)
    assert table.returncode == 0
    assert len(rows) == 3
    for row in rows:
        line = next(line for line in table.stdout.splitlines() if row["path"] in line)
        assert row["label"] in line
        assert f"{float(row['probability']):.4f}" in line


@pytest.fixture(scope="module")
def confident_bundle(
    stock_bundle: Path, parts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Bundle that labels the first of the three photos as unknown, and possibly others."""
    classifier = open_classifier(stock_bundle)
    logits = [
        classifier.run(load_image(path)[None]).logits.max()
        for path in sorted((parts / "val/good").iterdir())[:3]
    ]
    folder = tmp_path_factory.mktemp("confident") / "bundle"
    shutil.copytree(stock_bundle, folder)
    levels = (CoverageLevel(0.9, 2.0), CoverageLevel(0.95, 0.0005))
    return add_confidence(folder, float(logits[0]) + 0.5, levels=levels)


def test_json_contains_unknown_and_prediction_set(
    edgetl: Run, confident_bundle: Path, photos: Path
) -> None:
    process = edgetl("predict", confident_bundle, photos, "--json", "-k", 2, "--coverage", 0.95)
    images = json.loads(process.stdout)["images"]
    broken, first, *_ = images
    assert (broken["label"], broken["is_unknown"], broken["label_set"]) == (None, False, None)
    assert broken["unknown_score"] is None
    assert (first["label"], first["is_unknown"]) == ("unknown", True)
    assert first["unknown_score"] == pytest.approx(1.5, abs=1e-3)
    for image in images[1:]:
        assert image["is_unknown"] == (image["unknown_score"] > 1)
        probable = [entry["label"] for entry in image["top"] if entry["probability"] >= 0.0005]
        assert image["label_set"][:2] == probable
    plain = json.loads(edgetl("predict", confident_bundle, photos, "--json").stdout)["images"]
    assert all(image["label_set"] is None for image in plain)


def test_csv_contains_unknown_and_prediction_set(
    edgetl: Run, confident_bundle: Path, stock_bundle: Path, photos: Path
) -> None:
    options = (photos, "--csv", "-k", 1)
    plain, confident, sets = (
        list(csv.DictReader(io.StringIO(edgetl("predict", *arguments, *options).stdout)))
        for arguments in (
            (stock_bundle,),
            (confident_bundle, "--coverage", 0.9),
            (confident_bundle, "--coverage", 0.95),
        )
    )
    new = ("unknown_score", "is_unknown", "label_set")
    assert list(plain[0]) == ["path", "rank", "label", "probability", "error", *new]
    assert {row[name] for row in plain for name in new} == {""}
    assert [row["label"] for row in confident] == [row["label"] for row in plain]
    assert (confident[1]["is_unknown"], confident[0]["is_unknown"]) == ("true", "")
    assert float(confident[1]["unknown_score"]) == pytest.approx(1.5, abs=1e-3)
    assert [row["label_set"] for row in confident] == ["", "[]", "[]", "[]"]
    for row in sets[1:]:
        labels = json.loads(row["label_set"])
        assert labels[:1] == ([row["label"]] if float(row["probability"]) >= 0.0005 else [])


def test_table_contains_label_of_unknown_and_sets(
    edgetl: Run, confident_bundle: Path, stock_bundle: Path, photos: Path
) -> None:
    wide = {"env": {"COLUMNS": "400"}}
    photo = photos / "good_0000.jpg"
    plain = edgetl("predict", stock_bundle, photo, "-k", 1, **wide).stdout
    closest = plain.splitlines()[1].removeprefix(str(photo)).split("  ")[1].strip()
    table = edgetl("predict", confident_bundle, photo, "-k", 2, "--coverage", 0.9, **wide).stdout
    heading, best, second = table.splitlines()
    assert heading.rstrip().endswith("unknown score  0.9 prediction set")
    assert f"unknown (closest: {closest})" in best
    assert "1.50" in best
    assert best.rstrip().endswith("empty: no label is probable enough")
    assert "closest" not in second
    assert plain.split("\n")[0].split() == ["image", "label", "probability"]
    assert "closest" not in plain
    process = edgetl("predict", stock_bundle, photo, "--coverage", 0.9)
    assert process.returncode == 1
    assert "has no prediction sets" in process.stderr
    assert not process.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jpg"], "nowhere.jpg not found"),
        (["*.nothing"], "patterns"),
        (["{photos}", "--json", "--csv"], "--json cannot be combined with --csv"),
        (["{photos}", "--variant", "int4"], "no variant 'int4'"),
        (["{photos}", "--provider", "quantum"], "Unknown provider"),
        (["{photos}", "--provider", "coreml"], "no CoreMLExecutionProvider"),
    ],
)
def test_invalid_arguments_are_rejected(
    edgetl: Run, stock_bundle: Path, photos: Path, arguments: list[str], message: str
) -> None:
    process = edgetl(
        "predict", stock_bundle, *(argument.format(photos=photos) for argument in arguments)
    )
    assert process.returncode == 1
    assert message in process.stderr
    assert "Traceback" not in process.stderr
    assert not process.stdout


def test_unavailable_provider_does_not_fall_back(
    edgetl: Run, stock_bundle: Path, photos: Path
) -> None:
    """Without this check the GPU wheel would run on the CPU on a machine without a GPU."""
    import onnxruntime
    import torch

    if (
        "CUDAExecutionProvider" not in onnxruntime.get_available_providers()
        or torch.cuda.is_available()
    ):
        pytest.skip("needs the GPU wheel on a machine without a GPU")
    process = edgetl("predict", stock_bundle, photos, "--provider", "cuda")
    assert process.returncode == 1
    assert "CUDAExecutionProvider did not start" in process.stderr
    assert not process.stdout


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda bundle: (bundle / "fp32.onnx").write_bytes(
                (bundle / "fp32.onnx").read_bytes()[:-1] + b"!"
            ),
            "does not match bundle.json",
        ),
        (lambda bundle: (bundle / "fp32.onnx").unlink(), "fp32.onnx is missing"),
        (lambda bundle: (bundle / "bundle.json").unlink(), "no bundle.json"),
        (lambda bundle: (bundle / "bundle.json").write_text("{"), "not valid JSON"),
        (lambda bundle: (bundle / "bundle.json").write_text('{"schema": 99}'), "schema 99"),
        (lambda bundle: (bundle / "bundle.json").write_text('{"schema": 1}'), "is broken"),
    ],
)
def test_damaged_bundle_is_rejected(
    edgetl: Run,
    stock_bundle: Path,
    photos: Path,
    tmp_path: Path,
    damage: Callable[[Path], object],
    message: str,
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(stock_bundle, bundle)
    damage(bundle)
    process = edgetl("predict", bundle, photos)
    assert process.returncode == 1
    assert message in process.stderr
    assert "Traceback" not in process.stderr


def test_manifest_with_file_outside_the_bundle_is_rejected(
    edgetl: Run, stock_bundle: Path, photos: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(stock_bundle, bundle)
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["variants"][0]["file"] = "../elsewhere.onnx"
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    assert "outside the bundle" in edgetl("predict", bundle, photos).stderr


def test_onnx_file_predicts_like_its_bundle(
    edgetl: Run, stock_bundle: Path, photos: Path, tmp_path: Path
) -> None:
    onnx_path = tmp_path / "model.onnx"
    shutil.copy(stock_bundle / "fp32.onnx", onnx_path)
    pattern = str(photos / "*.jpg")
    assert (
        edgetl("predict", onnx_path, pattern, "--csv").stdout
        == edgetl("predict", stock_bundle, pattern, "--csv").stdout
    )


def test_bundled_client_predicts_the_same_labels(
    edgetl: Run, stock_bundle: Path, parts: Path
) -> None:
    photos = sorted((parts / "val").rglob("*.jpg"))
    rows = csv.DictReader(
        io.StringIO(edgetl("predict", stock_bundle, *photos, "--csv", "-k", 1).stdout)
    )
    client = subprocess.run(
        [sys.executable, "-I", stock_bundle / "predict.py", *photos],
        capture_output=True,
        text=True,
        check=True,
        cwd=stock_bundle.parent,
    )
    predictions = [line.split("\t") for line in client.stdout.splitlines()]
    assert [(path, label) for path, label, _ in predictions] == [
        (row["path"], row["label"]) for row in rows
    ]


def test_bundled_client_is_short() -> None:
    from edgetl.export import client

    text = (Path(client.__file__).parent / "predict.py").read_text().splitlines()
    assert len(text) <= 60
    imports = {
        line.split()[1].split(".")[0] for line in text if line.startswith(("import ", "from "))
    }
    assert imports <= {*sys.stdlib_module_names, "numpy", "PIL", "onnxruntime"}


# --- explanations


@pytest.fixture
def explained_bundle(tmp_path: Path) -> Path:
    return write_color_bundle(tmp_path / "bundle")


def test_explanations_are_named_after_images_and_kept(
    edgetl: Run, explained_bundle: Path, photos: Path, tmp_path: Path
) -> None:
    second = tmp_path / "more"
    second.mkdir()
    shutil.copy(photos / "good_0000.jpg", second)
    folder = tmp_path / "why" / "here"
    process = edgetl("predict", explained_bundle, photos, second, "--explain", folder, "--json")
    assert process.returncode == 1, "one of the photos is broken"
    images = json.loads(process.stdout)["images"]
    pictures = {Path(image["path"]): image.get("explanation") for image in images}
    assert pictures.pop(photos / "broken.png") is None
    assert pictures[photos / "good_0000.jpg"] == str(folder / "good_0000.png")
    assert pictures[second / "good_0000.jpg"] == str(folder / "good_0000-2.png")
    assert sorted(pictures.values()) == sorted(map(str, folder.iterdir()))
    assert f"Explanations: {folder}  (4 pictures)" in process.stderr
    content = {path: path.read_bytes() for path in folder.iterdir()}
    again = edgetl("predict", explained_bundle, second, "--explain", folder)
    assert again.returncode == 0, again.stderr
    assert {path: path.read_bytes() for path in content} == content
    assert (folder / "good_0000-3.png").read_bytes() == content[folder / "good_0000.png"]


def test_explanations_do_not_change_predictions(
    edgetl: Run, explained_bundle: Path, photos: Path, tmp_path: Path
) -> None:
    pattern = str(photos / "*.jpg")
    plain = edgetl("predict", explained_bundle, pattern, "--csv")
    explained = edgetl("predict", explained_bundle, pattern, "--csv", "--explain", tmp_path / "why")
    assert explained.stdout == plain.stdout
    assert plain.returncode == explained.returncode == 0


def test_bundle_without_activation_maps_explains_nothing(
    edgetl: Run, stock_bundle: Path, photos: Path, tmp_path: Path
) -> None:
    process = edgetl("predict", stock_bundle, photos, "--explain", tmp_path / "why")
    assert process.returncode == 1
    assert "no output activation_maps. Export it again with --explain." in process.stderr
    assert not process.stdout
    assert not (tmp_path / "why").exists()


def test_unwritable_explanation_folder_is_reported(
    edgetl: Run, explained_bundle: Path, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    process = edgetl(
        "predict", explained_bundle, photos / "good_0000.jpg", "--explain", tmp_path / "file"
    )
    assert process.returncode == 1
    assert "Cannot write" in process.stderr
    assert "Traceback" not in process.stderr
