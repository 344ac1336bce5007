"""JPEG decoding on the GPU: which files qualify, and their sizes."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from edgetl.device.runtime.images import load_image
from edgetl.train.data.jpeg import decode_with_nvjpeg, read_header, reduce_image, to_tensors


def decode_on_cpu(encoded: list[Tensor], device: torch.device) -> list[Tensor]:
    """Decode with torchvision on the CPU, in place of nvJPEG."""
    from torchvision.io import ImageReadMode, decode_jpeg

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [image.to(device) for image in decode_jpeg(encoded, mode=ImageReadMode.RGB)]


def make_image(height: int = 60, width: int = 90) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    waves = [128 + 90 * np.sin(x / 9), 128 + 90 * np.sin(y / 7), 2 * x % 256]
    return Image.fromarray(np.stack(waves, axis=2).astype(np.uint8))


def encode(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, **{"format": "JPEG", "quality": 90, **options})  # type: ignore[arg-type]
    return stream.getvalue()


def encode_with_orientation(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(make_image(), exif=exif)


@pytest.mark.parametrize(
    "encoded",
    [
        encode(make_image()),
        encode(make_image(), progressive=True),
        encode(make_image(), subsampling=0),
        encode(make_image(), subsampling=1),
        encode(make_image()) + b"\0" * 7,
        encode_with_orientation(1),
    ],
    ids=["baseline", "progressive", "4:4:4", "4:2:2", "padded", "upright"],
)
def test_read_header_accepts_upright_color_files(encoded: bytes) -> None:
    header = read_header(encoded)
    assert header is not None
    assert (header.height, header.width) == (60, 90)


@pytest.mark.parametrize(
    "encoded",
    [
        encode(make_image().convert("L")),
        encode(make_image().convert("CMYK")),
        encode(make_image(), keep_rgb=True),
        encode(make_image(), format="PNG"),
        encode(make_image(), format="WEBP"),
        encode(make_image(), format="MPO", save_all=True, append_images=[make_image()]),
        encode_with_orientation(6),
        encode_with_orientation(2),
        encode(make_image())[:-40],
        encode(make_image())[:100],
        b"",
    ],
    ids=[
        "gray",
        "cmyk",
        "rgb",
        "png",
        "webp",
        "mpo",
        "rotated",
        "mirrored",
        "truncated",
        "header",
        "empty",
    ],
)
def test_read_header_rejects_other_files(encoded: bytes) -> None:
    assert read_header(encoded) is None


@pytest.mark.parametrize("size", [(60, 90), (61, 91), (400, 300), (333, 1001), (59, 700)])
@pytest.mark.parametrize("min_side", [8, 30, 37, 60, 500])
def test_reduced_size_equals_cpu_decode(size: tuple[int, int], min_side: int) -> None:
    encoded = encode(make_image(*size))
    header = read_header(encoded)
    assert header is not None
    expected = load_image(encoded, min_side)
    full = torch.from_numpy(load_image(encoded)).permute(2, 0, 1)
    reduced = reduce_image(full, header.reduction_factor(min_side))
    assert tuple(reduced.shape[1:]) == header.reduced_size(min_side) == expected.shape[:2]
    difference = abs(reduced.permute(1, 2, 0).numpy().astype(int) - expected)
    # Detail is removed by averaging instead of in the frequency domain.
    assert difference.mean() < 3


def test_photos_decode_as_by_pillow_or_are_rejected(shared: Path) -> None:
    paths = [
        *sorted((shared / "data" / "flowers5" / "train").rglob("*.jpg"))[::25],
        *sorted((shared / "data" / "odd").iterdir()),
    ]
    decoded_count, rejected = 0, set()
    for path in paths:
        encoded = path.read_bytes()
        header = read_header(encoded)
        if header is None:
            rejected.add(path.name)
            continue
        decoded_count += 1
        expected = load_image(path)
        pixels = (
            decode_on_cpu(to_tensors([encoded]), torch.device("cpu"))[0].permute(1, 2, 0).numpy()
        )
        assert pixels.shape == expected.shape == (header.height, header.width, 3)
        assert abs(pixels.astype(int) - expected).max() <= 1
    assert decoded_count > 10
    rotated_or_gray = {
        "exif_Landscape_3.jpg",
        "exif_Portrait_5.jpg",
        "n02676566_acoustic_guitar_gray.JPEG",
        "pillow_pil_sample_cmyk.jpg",
    }
    assert rotated_or_gray | {"pillow_truncated_jpeg.jpg"} <= rejected


def test_nvjpeg_synchronizes_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.io

    original = torchvision.io.decode_jpeg
    calls: list[str] = []

    class Stream:
        def synchronize(self) -> None:
            calls.append("waited")

    def decode(encoded: list[Tensor], mode: object, device: torch.device) -> list[Tensor]:
        calls.append(f"decoded {len(encoded)} on {device.type}")
        return list(original(encoded, mode=mode))

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torchvision.io, "decode_jpeg", decode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = decode_with_nvjpeg(to_tensors([encode(make_image())] * 2), torch.device("cuda"))
    assert [tuple(image.shape) for image in images] == [(3, 60, 90)] * 2
    assert calls == ["waited", "decoded 2 on cuda"]
