"""The bundle's C++ client, compiled against ONNX Runtime and OpenCV where they are, beside predict.py."""

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

from edgetl.core.artifacts.bundle import read_bundle_manifest
from edgetl.device.runtime.bundle import read_metadata
from tests.conftest import ROOT

SOURCE = ROOT / "edgetl/export/client/predict.cpp"
TOLERANCE = 0.001
"""Largest difference of a probability from predict.py's: decoders may differ by a grey level."""
Client = Callable[..., subprocess.CompletedProcess[str]]


def include_folders() -> list[Path]:
    """Where the two packages of Debian, and the folder that CI fills, have their headers."""
    wanted = {"onnxruntime_cxx_api.h": ("onnxruntime",), "opencv2/imgcodecs.hpp": ("opencv4",)}
    found = []
    for header, names in wanted.items():
        places = [
            Path(root, name) for root in ("/usr/include", "/usr/local/include") for name in names
        ]
        place = next((place for place in places if (place / header).is_file()), None)
        if place is None:
            pytest.skip(f"no {header}: apt-get install libonnxruntime-dev libopencv-imgcodecs-dev")
        found.append(place)
    return found


def runtime_library(folder: Path) -> Path:
    """A folder with the library out of the installed wheel, under the names that a linker looks for."""
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
    include = [f"-I{place}" for place in include_folders()]
    library = runtime_library(folder)
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
    """Real photos, upright, turned by EXIF all eight ways, grey, with transparency, with a palette, with 16 bits."""
    sources = sorted((shared / "data/flowers5/val").rglob("*.jpg"))[::44]
    made = []
    with Image.open(sources[0]) as photo:
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            made.append(tmp_path / f"turned{orientation}.jpg")
            photo.save(made[-1], exif=exif, quality=92)
        grey = photo.convert("L")
        grey.save(tmp_path / "grey.jpg")
        deep = Image.fromarray(np.asarray(grey, np.uint16) * 256 + 200)
        deep.save(tmp_path / "deep.png")
        seen = photo.convert("RGBA")
        seen.putalpha(Image.linear_gradient("L").resize(photo.size))
        seen.save(tmp_path / "alpha.png")
        Image.merge("LA", (grey, seen.getchannel("A"))).save(tmp_path / "grey_alpha.png")
        palette = photo.convert("P")
        palette.save(tmp_path / "palette.png", transparency=palette.getpixel((0, 0)))
    return [
        *sources,
        *made,
        *(
            tmp_path / name
            for name in ("grey.jpg", "deep.png", "alpha.png", "grey_alpha.png", "palette.png")
        ),
    ]


def answers(done: subprocess.CompletedProcess[str]) -> dict[str, tuple[str, float]]:
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    return {path: (label, float(probability)) for path, label, probability in lines}


def test_it_answers_as_the_python_client_does(
    client: Client, stock_bundle: Path, photos: list[Path]
) -> None:
    found = answers(client(stock_bundle / "fp32.onnx", *photos))
    python = [sys.executable, "-I", stock_bundle / "predict.py", *photos]
    expected = answers(subprocess.run(python, capture_output=True, text=True, check=True))
    assert list(found) == [str(photo) for photo in photos]
    assert {path: label for path, (label, _) in found.items()} == {
        path: label for path, (label, _) in expected.items()
    }
    assert max(abs(found[path][1] - expected[path][1]) for path in expected) <= TOLERANCE
    # Were photos not turned, or transparency dropped, these would be equal.
    probabilities = {Path(path).stem: probability for path, (_, probability) in found.items()}
    assert len({probabilities[name] for name in ("turned1", "turned6", "alpha", "grey")}) == 4


def test_what_it_cannot_read_is_one_sentence_and_the_rest_is_labelled(
    client: Client, stock_bundle: Path, photos: list[Path], tmp_path: Path
) -> None:
    for photo in (photos[0], tmp_path / "alpha.png"):
        (tmp_path / f"cut{photo.suffix}").write_bytes(
            photo.read_bytes()[: photo.stat().st_size // 2]
        )
    bad = [
        tmp_path / "cut.jpg",
        tmp_path / "cut.png",
        tmp_path / "nothing.jpg",
        tmp_path,
        stock_bundle / "README.md",
    ]
    done = client(stock_bundle / "fp32.onnx", *bad, photos[0])
    assert done.returncode == 1
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [str(photos[0])]
    said = [line for line in done.stderr.splitlines() if not line.startswith("libpng")]
    assert len(said) == len(bad)
    for path, line in zip(bad, said, strict=True):
        assert line.startswith(f"{path} is not labelled: "), line


def with_metadata(file: Path, target: Path, **changes: str) -> Path:
    model = onnx.load(file)
    kept = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(
        model, kept | {f"edgetl.{key}": value for key, value in changes.items()}
    )
    onnx.save(model, target)
    return target


def test_files_that_do_not_take_photos_are_refused(
    client: Client, stock_bundle: Path, photos: list[Path], tmp_path: Path
) -> None:
    tensor = with_metadata(stock_bundle / "fp32.onnx", tmp_path / "tensor.onnx", input='"tensor"')
    for file, words in (
        (tensor, "without --input tensor"),
        (tmp_path / "no.onnx", "no.onnx"),
        (stock_bundle / "README.md", "README.md"),
    ):
        done = client(file, photos[0])
        assert done.returncode == 1
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not done.stdout
    assert "Usage: predict FILE.onnx IMAGE..." in client().stderr


def test_labels_may_hold_anything(
    client: Client, stock_bundle: Path, photos: list[Path], tmp_path: Path
) -> None:
    """Written into the file as export writes them, read by a reader of its own."""

    model = onnx.load(stock_bundle / "fp32.onnx")
    labels = read_metadata({entry.key: entry.value for entry in model.metadata_props})["labels"]
    (first,) = answers(client(stock_bundle / "fp32.onnx", photos[0])).values()
    odd = 'two "words", [a] \\ back\\slash, ünï/コード 🌻, u0041 \x01 bell\x07'
    labels[labels.index(first[0])] = odd
    changed = with_metadata(
        stock_bundle / "fp32.onnx",
        tmp_path / "odd.onnx",
        labels=json.dumps(labels, ensure_ascii=False),
    )
    assert answers(client(changed, photos[0])) == {str(photos[0]): (odd, first[1])}


def test_the_source_is_short_and_in_the_bundle(stock_bundle: Path) -> None:
    assert len(SOURCE.read_text(encoding="utf-8").splitlines()) <= 110
    assert (stock_bundle / "predict.cpp").read_bytes() == SOURCE.read_bytes()
    assert read_bundle_manifest(stock_bundle).file_statuses["predict.cpp"] == "as proven"
    assert "./predict fp32.onnx photo.jpg" in (stock_bundle / "README.md").read_text(
        encoding="utf-8"
    )


def test_bundles_from_before_it_are_still_read(stock_bundle: Path, tmp_path: Path) -> None:

    old = tmp_path / "bundle"
    shutil.copytree(stock_bundle, old)
    manifest = json.loads((old / "bundle.json").read_text(encoding="utf-8"))
    del manifest["cpp_client"]
    (old / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    (old / "predict.cpp").unlink()
    assert set(read_bundle_manifest(old).file_statuses.values()) == {"as proven"}
