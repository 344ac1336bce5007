"""Image decoding of generated files and of real unusual ones."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from edgetl.core.errors import DecodeError
from edgetl.device.loadgen.samples import _decoded_bytes
from edgetl.device.runtime.images import load_image
from edgetl.train.check.inspect_files import _inspect_file
from edgetl.train.data.folders import LabeledFile, RejectedFile
from edgetl.train.data.scan import read_bytes

UNREADABLE = {
    ".DS_Store",
    "lfs_pointer_image_06734.jpg",
    "pillow_truncated_jpeg.jpg",
    "pillow_truncated_image.png",
    "pillow_broken.png",
    "pillow_broken_data_stream.png",
}
"""Files of the odd collection that no decoder reads completely, according to its notes."""


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def test_odd_files_are_decoded_or_rejected(shared: Path) -> None:
    files = [path for path in sorted((shared / "data/odd").iterdir()) if path.name != "NOTES.tsv"]
    rejected_names = set()
    messages = []
    for path in files:
        try:
            image = load_image(path)
        except DecodeError as error:
            rejected_names.add(path.name)
            messages.append(str(error))
        else:
            assert image.dtype == np.uint8
            assert image.ndim == 3
            assert image.shape[2] == 3
    assert len(files) == 30
    assert all(str(shared) in message for message in messages)
    assert rejected_names == UNREADABLE


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
/Helvetica findfont 8 scalefont setfont 0 0 moveto (x) show showpage
%%EOF
"""


def test_eps_with_jpg_suffix_does_not_run_ghostscript(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    file = tmp_path / "x.jpg"
    file.write_bytes(EPS)
    assert Image.open(file).format == "EPS", "Pillow would pass this file to Ghostscript"
    with pytest.raises(DecodeError, match="not a known image format"):
        load_image(file)
    assert isinstance(_inspect_file(LabeledFile(file, "cat", None)), RejectedFile)
    assert _decoded_bytes(file) == 1
    assert not (tmp_path / "ran").exists()


def test_load_image_rejects_pipes_devices_and_folders(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("pipe.jpg", "zero.jpg", "folder.jpg"):
        with pytest.raises(
            DecodeError, match=rf"{name}: cannot be read \((not a regular file|Is a directory)\)"
        ):
            load_image(tmp_path / name)
        assert isinstance(read_bytes(tmp_path / name), RejectedFile)


def test_load_image_rejects_huge_file(tmp_path: Path) -> None:
    huge = tmp_path / "huge.jpg"
    with huge.open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(DecodeError, match=r"huge.jpg: cannot be read \(more than 256 MiB\)"):
        load_image(huge)


@pytest.mark.parametrize(
    "format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "TGA", "PPM"]
)
def test_load_image_decodes_every_format(format: str) -> None:
    assert load_image(encode(Image.new("RGB", (20, 10), (200, 30, 40)), format)).shape == (
        10,
        20,
        3,
    )


@pytest.mark.parametrize(
    ("name", "upright"),
    [
        ("exif_Landscape_6.jpg", (1200, 1800)),
        ("exif_Portrait_8.jpg", (1800, 1200)),
        ("exif_Portrait_5.jpg", (1800, 1200)),
    ],
)
def test_load_image_applies_orientation_of_photos(
    shared: Path, name: str, upright: tuple[int, int]
) -> None:
    assert load_image(shared / "data/odd" / name).shape[:2] == upright


def test_rotated_copies_of_photo_decode_alike(shared: Path) -> None:
    # Landscape_3 and Landscape_6 are the same scene stored in two orientations.
    images = [load_image(shared / "data/odd" / f"exif_Landscape_{n}.jpg") for n in (3, 6)]
    thumbnails = [
        np.asarray(Image.fromarray(image).resize((32, 32))).astype(int) for image in images
    ]
    assert np.abs(thumbnails[0] - thumbnails[1]).mean() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_load_image_applies_every_exif_orientation(orientation: int) -> None:
    upright = np.zeros((20, 30, 3), np.uint8)
    upright[:10, :15] = (255, 0, 0)
    undo = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270}  # fmt: skip
    stored = Image.fromarray(upright)
    if orientation in undo:
        stored = stored.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert (load_image(encode(stored, "PNG", exif=exif)) == upright).all()


def test_load_image_composes_transparency_onto_white() -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 3] = [0, 85, 170, 255]
    assert load_image(encode(Image.fromarray(rgba, "RGBA")))[0, :, 0].tolist() == [255, 170, 85, 0]


@pytest.mark.parametrize("mode", ["LA", "P"])
def test_load_image_composes_gray_and_palette_images(mode: str) -> None:
    if mode == "LA":
        encoded = encode(Image.new("LA", (2, 2), (0, 0)))
    else:
        image = Image.new("P", (2, 2), 0)
        image.putpalette([10, 20, 30, 40, 50, 60])
        encoded = encode(image, transparency=0)
    assert (load_image(encoded) == 255).all()


def test_load_image_keeps_high_byte_of_16_bit_gray() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    for format in ("PNG", "TIFF"):
        image = load_image(encode(Image.fromarray(ramp), format))
        assert (image[..., 1] == ramp >> 8).all()


def test_load_image_converts_other_modes_to_rgb() -> None:
    assert (load_image(encode(Image.new("L", (3, 2), 77))) == 77).all()
    assert (load_image(encode(Image.new("1", (3, 2), 1))) == 255).all()
    cmyk = encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    assert load_image(cmyk)[0, 0, 0] > 240


@pytest.mark.parametrize("mode", ["I", "F"])
def test_load_image_rejects_pixels_without_range(mode: str) -> None:
    pixels = np.full((2, 2), 1e6, np.int32 if mode == "I" else np.float32)
    with pytest.raises(DecodeError, match="defined range"):
        load_image(encode(Image.fromarray(pixels), "TIFF"))


def test_load_image_rejects_truncated_file_when_pillow_allows_it(
    tmp_path: Path,
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = tmp_path / "half.jpg"
    encoded = encode(Image.fromarray(noise), "JPEG")
    path.write_bytes(encoded[: len(encoded) // 2])
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        with pytest.raises(DecodeError, match="truncated"):
            load_image(path)
        assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"hello", "not a known"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_load_image_error_gives_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(DecodeError, match=reason):
        load_image(path)
    with pytest.raises(DecodeError, match="cannot be read"):
        load_image(tmp_path / "absent.jpg")


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=300),
    st.sampled_from(["", "PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"]),
    st.integers(0, 400),
)
def test_load_image_raises_only_decode_error(noise: bytes, format: str, length: int) -> None:
    header = encode(Image.new("RGB", (9, 7), (1, 2, 3)), format)[:length] if format else b""
    with contextlib.suppress(DecodeError):
        assert load_image(header + noise).shape[2] == 3


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (3, 301)])
def test_load_image_rejects_narrow_images(size: tuple[int, int]) -> None:
    with pytest.raises(
        DecodeError,
        match=f"{size[0]} x {size[1]} pixels: the longer side is more than 100 times the shorter",
    ):
        load_image(encode(Image.new("RGB", size), "PNG"))
    assert load_image(encode(Image.new("RGB", (3, 300)), "PNG")).shape == (300, 3, 3)
