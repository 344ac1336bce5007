"""The bundle's C++ client, compiled with ONNX Runtime and OpenCV and compared with predict.py."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from edgetl.core.artifacts.bundle import read_bundle_record
from edgetl.core.artifacts.model_metadata import ModelMetadata
from edgetl.device.runtime.classifier import open_classifier
from edgetl.device.runtime.images import load_image
from tests.conftest import ROOT
from tests.helpers.clients import read_closest_labels
from tests.helpers.confidence import add_confidence

SOURCE = ROOT / "edgetl/export/client/predict.cpp"
TOLERANCE = 0.001
"""Largest difference of probabilities from predict.py; decoders may differ by a grey level."""
Client = Callable[..., subprocess.CompletedProcess[str]]


def include_folders() -> list[Path]:
    """Return the folders with the headers of Debian's packages or of CI's installation."""
    headers = {"onnxruntime_cxx_api.h": "onnxruntime", "opencv2/imgcodecs.hpp": "opencv4"}
    folders = []
    for header, name in headers.items():
        candidates = [Path(root, name) for root in ("/usr/include", "/usr/local/include")]
        folder = next((folder for folder in candidates if (folder / header).is_file()), None)
        if folder is None:
            pytest.skip(f"no {header}: apt-get install libonnxruntime-dev libopencv-imgcodecs-dev")
        folders.append(folder)
    return folders


def link_runtime_library(folder: Path) -> Path:
    """Link the library of the installed wheel under the names that the linker expects."""
    spec = importlib.util.find_spec("onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    library = next((Path(spec.origin).parent / "capi").glob("libonnxruntime.so.*"))
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / name).symlink_to(library)
    return folder


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Client:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    folder = tmp_path_factory.mktemp("cpp")
    include = [f"-I{path}" for path in include_folders()]
    library = link_runtime_library(folder)
    libraries = [
        f"-L{library}",
        f"-Wl,-rpath,{library}",
        "-lonnxruntime",
        "-lopencv_imgcodecs",
        "-lopencv_core",
    ]
    options = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(
        [compiler, *options, SOURCE, "-o", folder / "predict", *include, *libraries],
        check=True,
        timeout=120,
    )
    return lambda *arguments: subprocess.run(
        [folder / "predict", *arguments], capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def photos(shared: Path, tmp_path: Path) -> list[Path]:
    """Real photos: upright, with all EXIF orientations, grey, transparent, palette and 16-bit."""
    sources = sorted((shared / "data/flowers5/val").rglob("*.jpg"))[::44]
    rotated = []
    with Image.open(sources[0]) as photo:
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            rotated.append(tmp_path / f"rotated{orientation}.jpg")
            photo.save(rotated[-1], exif=exif, quality=92)
        grey = photo.convert("L")
        grey.save(tmp_path / "grey.jpg")
        deep = Image.fromarray(np.asarray(grey, np.uint16) * 256 + 200)
        deep.save(tmp_path / "deep.png")
        transparent = photo.convert("RGBA")
        transparent.putalpha(Image.linear_gradient("L").resize(photo.size))
        transparent.save(tmp_path / "alpha.png")
        Image.merge("LA", (grey, transparent.getchannel("A"))).save(tmp_path / "grey_alpha.png")
        palette = photo.convert("P")
        palette.save(tmp_path / "palette.png", transparency=palette.getpixel((0, 0)))
    converted = ("grey.jpg", "deep.png", "alpha.png", "grey_alpha.png", "palette.png")
    return [*sources, *rotated, *(tmp_path / name for name in converted)]


def parse_output(process: subprocess.CompletedProcess[str]) -> dict[str, tuple[str, float]]:
    """Return path to (label, probability)."""
    assert process.returncode == 0, process.stderr
    return read_closest_labels(process.stdout)


def test_client_matches_python_client(
    client: Client, stock_bundle: Path, photos: list[Path]
) -> None:
    predictions = parse_output(client(stock_bundle / "fp32.onnx", *photos))
    python = [sys.executable, "-I", stock_bundle / "predict.py", *photos]
    expected = parse_output(subprocess.run(python, capture_output=True, text=True, check=True))
    assert list(predictions) == [str(photo) for photo in photos]
    assert {path: label for path, (label, _) in predictions.items()} == {
        path: label for path, (label, _) in expected.items()
    }
    assert max(abs(predictions[path][1] - expected[path][1]) for path in expected) <= TOLERANCE
    # These would be equal if the EXIF orientation or transparency were ignored.
    probabilities = {Path(path).stem: probability for path, (_, probability) in predictions.items()}
    assert len({probabilities[name] for name in ("rotated1", "rotated6", "alpha", "grey")}) == 4


def test_client_labels_unknown_images_as_python_client(
    client: Client, stock_bundle: Path, photos: list[Path], tmp_path: Path
) -> None:
    bundle = shutil.copytree(stock_bundle, tmp_path / "bundle")
    classifier = open_classifier(bundle)
    logits = [classifier.run(load_image(photo)[None]).logits.max() for photo in photos]
    add_confidence(bundle, float(np.median(logits)) - 0.05)
    process = client(bundle / "fp32.onnx", *photos)
    assert process.returncode == 0, process.stderr
    lines = [line.split("\t") for line in process.stdout.splitlines()]
    python = [sys.executable, "-I", bundle / "predict.py", *photos]
    output = subprocess.run(python, capture_output=True, text=True, check=True).stdout
    expected = [line.split("\t") for line in output.splitlines()]
    for columns, expected_columns in zip(lines, expected, strict=True):
        path, label, probability, score, closest = columns
        assert [path, label, closest] == [expected_columns[index] for index in (0, 1, 4)]
        assert abs(float(probability) - float(expected_columns[2])) <= TOLERANCE
        assert abs(float(score) - float(expected_columns[3])) <= 0.03
    assert 0 < [label for _, label, *_ in lines].count("unknown") < len(lines)


def test_client_reports_unreadable_files_and_continues(
    client: Client, stock_bundle: Path, photos: list[Path], tmp_path: Path
) -> None:
    for photo in (photos[0], tmp_path / "alpha.png"):
        (tmp_path / f"truncated{photo.suffix}").write_bytes(
            photo.read_bytes()[: photo.stat().st_size // 2]
        )
    bad = [
        tmp_path / "truncated.jpg",
        tmp_path / "truncated.png",
        tmp_path / "missing.jpg",
        tmp_path,
        stock_bundle / "README.md",
    ]
    process = client(stock_bundle / "fp32.onnx", *bad, photos[0])
    assert process.returncode == 1
    assert [line.split("\t")[0] for line in process.stdout.splitlines()] == [str(photos[0])]
    messages = [line for line in process.stderr.splitlines() if not line.startswith("libpng")]
    assert len(messages) == len(bad)
    for path, message in zip(bad, messages, strict=True):
        assert message.startswith(f"Cannot label {path}: "), message


def with_metadata(file: Path, target: Path, **changes: str) -> Path:
    model = onnx.load(file)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    metadata |= {f"edgetl.{key}": value for key, value in changes.items()}
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, target)
    return target


def test_client_refuses_files_without_image_input(
    client: Client, stock_bundle: Path, photos: list[Path], tmp_path: Path
) -> None:
    tensor = with_metadata(stock_bundle / "fp32.onnx", tmp_path / "tensor.onnx", input='"tensor"')
    for file, message in (
        (tensor, "without --input tensor"),
        (tmp_path / "no.onnx", "no.onnx"),
        (stock_bundle / "README.md", "README.md"),
    ):
        process = client(file, photos[0])
        assert process.returncode == 1
        assert message in process.stderr
        assert len(process.stderr.splitlines()) == 1
        assert not process.stdout
    assert "Usage: predict FILE.onnx IMAGE..." in client().stderr


def test_client_reads_labels_with_special_characters(
    client: Client, stock_bundle: Path, photos: list[Path], tmp_path: Path
) -> None:
    model = onnx.load(stock_bundle / "fp32.onnx")
    properties = {entry.key: entry.value for entry in model.metadata_props}
    labels = list(ModelMetadata.from_properties(properties).labels)
    (first,) = parse_output(client(stock_bundle / "fp32.onnx", photos[0])).values()
    odd = 'two "words", [a] \\ back\\slash, ünï/コード 🌻, u0041 \x01 bell\x07'
    labels[labels.index(first[0])] = odd
    changed = with_metadata(
        stock_bundle / "fp32.onnx",
        tmp_path / "odd.onnx",
        labels=json.dumps(labels, ensure_ascii=False),
    )
    assert parse_output(client(changed, photos[0])) == {str(photos[0]): (odd, first[1])}


def test_source_is_short_and_in_the_bundle(stock_bundle: Path) -> None:
    assert len(SOURCE.read_text(encoding="utf-8").splitlines()) <= 120
    assert (stock_bundle / "predict.cpp").read_bytes() == SOURCE.read_bytes()
    assert read_bundle_record(stock_bundle).file_statuses["predict.cpp"] == "as proven"
    assert "./predict fp32.onnx photo.jpg" in (stock_bundle / "README.md").read_text(
        encoding="utf-8"
    )


def test_bundle_without_cpp_client_is_readable(stock_bundle: Path, tmp_path: Path) -> None:
    old = tmp_path / "bundle"
    shutil.copytree(stock_bundle, old)
    manifest = json.loads((old / "bundle.json").read_text(encoding="utf-8"))
    del manifest["cpp_client"]
    (old / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    (old / "predict.cpp").unlink()
    assert set(read_bundle_record(old).file_statuses.values()) == {"as proven"}
