"""The GPU gets only files that `load_image` would merely decode, and they come out at the same size."""

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
    """torchvision's own decoder on the CPU, in the place of nvJPEG."""
    from torchvision.io import ImageReadMode, decode_jpeg

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [image.to(device) for image in decode_jpeg(encoded, mode=ImageReadMode.RGB)]


def picture(height: int = 60, width: int = 90) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    waves = [128 + 90 * np.sin(x / 9), 128 + 90 * np.sin(y / 7), 2 * x % 256]
    return Image.fromarray(np.stack(waves, axis=2).astype(np.uint8))


def encode(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, **{"format": "JPEG", "quality": 90, **options})  # type: ignore[arg-type]
    return stream.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(picture(), exif=exif)


@pytest.mark.parametrize(
    "encoded",
    [
        encode(picture()),
        encode(picture(), progressive=True),
        encode(picture(), subsampling=0),
        encode(picture(), subsampling=1),
        encode(picture()) + b"\0" * 7,
        turned(1),
    ],
    ids=["baseline", "progressive", "4:4:4", "4:2:2", "padded", "upright"],
)
def test_the_gpu_takes_upright_color_files(encoded: bytes) -> None:
    header = read_header(encoded)
    assert header is not None
    assert (header.height, header.width) == (60, 90)


@pytest.mark.parametrize(
    "encoded",
    [
        encode(picture().convert("L")),
        encode(picture().convert("CMYK")),
        encode(picture(), keep_rgb=True),
        encode(picture(), format="PNG"),
        encode(picture(), format="WEBP"),
        encode(picture(), format="MPO", save_all=True, append_images=[picture()]),
        turned(6),
        turned(2),
        encode(picture())[:-40],
        encode(picture())[:100],
        b"",
    ],
    ids=[
        "gray",
        "cmyk",
        "rgb",
        "png",
        "webp",
        "mpo",
        "turned",
        "mirrored",
        "cut",
        "header",
        "empty",
    ],
)
def test_everything_else_stays_on_the_cpu(encoded: bytes) -> None:
    assert read_header(encoded) is None


@pytest.mark.parametrize("size", [(60, 90), (61, 91), (400, 300), (333, 1001), (59, 700)])
@pytest.mark.parametrize("least_side", [8, 30, 37, 60, 500])
def test_reduction_gives_the_size_that_the_cpu_decodes_to(
    size: tuple[int, int], least_side: int
) -> None:
    encoded = encode(picture(*size))
    header = read_header(encoded)
    assert header is not None
    expected = load_image(encoded, least_side)
    full = torch.from_numpy(load_image(encoded)).permute(2, 0, 1)
    found = reduce_image(full, header.reduction_factor(least_side))
    assert tuple(found.shape[1:]) == header.reduced_size(least_side) == expected.shape[:2]
    difference = abs(found.permute(1, 2, 0).numpy().astype(int) - expected)
    # Detail left out by averaging instead of in the frequency domain.
    assert difference.mean() < 3


def test_every_photo_is_refused_or_decoded_as_by_pillow(shared: Path) -> None:
    paths = [
        *sorted((shared / "data" / "flowers5" / "train").rglob("*.jpg"))[::25],
        *sorted((shared / "data" / "odd").iterdir()),
    ]
    taken, refused = 0, set()
    for path in paths:
        encoded = path.read_bytes()
        header = read_header(encoded)
        if header is None:
            refused.add(path.name)
            continue
        taken += 1
        expected = load_image(path)
        found = (
            decode_on_cpu(to_tensors([encoded]), torch.device("cpu"))[0].permute(1, 2, 0).numpy()
        )
        assert found.shape == expected.shape == (header.height, header.width, 3)
        assert abs(found.astype(int) - expected).max() <= 1
    assert taken > 10
    turned_or_gray = {
        "exif_Landscape_3.jpg",
        "exif_Portrait_5.jpg",
        "n02676566_acoustic_guitar_gray.JPEG",
        "pillow_pil_sample_cmyk.jpg",
    }
    assert turned_or_gray | {"pillow_truncated_jpeg.jpg"} <= refused


def test_nvjpeg_waits_for_the_memory_it_writes_to(monkeypatch: pytest.MonkeyPatch) -> None:
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
        images = decode_with_nvjpeg(to_tensors([encode(picture())] * 2), torch.device("cuda"))
    assert [tuple(image.shape) for image in images] == [(3, 60, 90)] * 2
    assert calls == ["waited", "decoded 2 on cuda"]
