"""Device loader, with torchvision's CPU decoder in place of nvJPEG."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from edgetl.core.artifacts.split import SplitEntry
from edgetl.core.errors import DecodeError
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.runtime.images import load_image
from edgetl.train.data.augmentation import Augmentation
from edgetl.train.data.decoded_cache import DecodedImageCache
from edgetl.train.data.gpu_images import DeviceImageCache
from edgetl.train.data.gpu_loader import DeviceLoader
from edgetl.train.data.jpeg import BatchDecoder
from edgetl.train.data.loader import ImageDataset, ImageLoader, ViewKey, group_into_batches
from tests.train.data.test_jpeg import decode_on_cpu, make_image

SIDE = 32
CPU = torch.device("cpu")
IMAGES, IMAGE_BYTES = 8, 60 * 90 * 3


class CountingDecoder:
    """Decoder that records batch sizes and fails on the given files."""

    def __init__(self, *failing: Path) -> None:
        self.batches: list[int] = []
        self._failing_sizes = {path.stat().st_size for path in failing}

    def __call__(self, encoded: list[Tensor], device: torch.device) -> list[Tensor]:
        self.batches.append(len(encoded))
        if self._failing_sizes & {len(file) for file in encoded}:
            raise RuntimeError("Error while decoding JPEG images")
        return decode_on_cpu(encoded, device)


def failing_decoder(encoded: list[Tensor], device: torch.device) -> list[Tensor]:
    raise RuntimeError(
        "decode_jpegs_cuda, /vision/decode_jpegs_cuda.cpp:16, torchvision not compiled with nvJPEG support\nand a stack"
    )


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Seven JPEG files of different lengths and a PNG."""
    files = []
    for number in range(IMAGES):
        path = tmp_path / f"{number}.{'png' if number == 3 else 'jpg'}"
        make_image(60, 90).point(lambda level, number=number: (level + 20 * number) % 256).save(
            path, **({} if number == 3 else {"quality": 80 + number})
        )
        files.append(path)
    assert len({path.stat().st_size for path in files}) == IMAGES
    return files


def build(
    paths: list[Path],
    decoder: BatchDecoder,
    budget: int = 10**9,
    min_side: int = 64,
    host_budget: int = 0,
) -> tuple[DeviceLoader, ImageLoader, DeviceImageCache, list[str]]:
    preprocessing = Preprocessing.for_image_size(SIDE)
    entries = [SplitEntry(path, "ab"[number % 2], "train") for number, path in enumerate(paths)]
    decoded_cache = DecodedImageCache(host_budget, min_side)
    decoded_cache.record_file_stamps(paths)
    loader = ImageLoader(
        ImageDataset(
            entries,
            ["a", "b"],
            Augmentation("light", preprocessing, 0),
            preprocessing,
            decoded_cache,
        ),
        0,
    )
    notes: list[str] = []
    images = DeviceImageCache(decoded_cache, CPU, budget, decoder)
    images.on_decoder_failure = notes.append
    return DeviceLoader(loader, images, SIDE, CPU), loader, images, notes


def keys(view: int | None) -> list[list[ViewKey]]:
    return group_into_batches([(view, index) for index in range(IMAGES)], 3)


def assert_same_views(device_loader: DeviceLoader, loader: ImageLoader, view: int | None) -> None:
    for (pixels, pixel_labels), (expected, labels) in zip(
        device_loader(keys(view)), loader(keys(view)), strict=True
    ):
        assert pixels.dtype == torch.uint8
        assert torch.equal(pixel_labels, labels)
        assert (pixels.int() - expected.int()).abs().max() <= (0 if view is None else 1)


def test_batches_equal_those_of_cpu_loader(paths: list[Path]) -> None:
    device_loader, loader, _, _ = build(paths, decode_on_cpu)
    for view in (1, 2, None):
        assert_same_views(device_loader, loader, view)
    for (pixels, _), (expected, _) in zip(
        device_loader.iter_eval_batches([5, 3, 1], 2),
        loader.iter_eval_batches([5, 3, 1], 2),
        strict=True,
    ):
        assert torch.equal(pixels, expected)


def test_training_and_eval_batches_alternate(paths: list[Path]) -> None:
    device_loader, loader, _, _ = build(paths, decode_on_cpu)
    batches: list[list[ViewKey]] = [[(1, 0), (1, 1)], [(None, 2)], [(2, 3)], [(None, 4), (None, 5)]]
    for (pixels, labels), (expected, expected_labels) in zip(
        device_loader(batches), loader(batches), strict=True
    ):
        assert (pixels.int() - expected.int()).abs().max() <= 1
        assert torch.equal(labels, expected_labels)


def test_images_are_decoded_once_when_they_fit(paths: list[Path]) -> None:
    decoder = CountingDecoder()
    device_loader, _, images, notes = build(paths, decoder)
    for view in (1, 2, 3):
        list(device_loader(keys(view)))
    assert decoder.batches == [3, 2, 2], (
        "the PNG is decoded on the CPU, and later epochs decode nothing"
    )
    assert images.cached_bytes == IMAGES * IMAGE_BYTES
    assert notes == []


def test_images_over_budget_are_decoded_every_epoch(paths: list[Path]) -> None:
    decoder = CountingDecoder()
    device_loader, loader, images, _ = build(paths, decoder, budget=5 * IMAGE_BYTES + 1)
    for view in (1, 2, 3):
        assert_same_views(device_loader, loader, view)
    assert images.cached_bytes == 5 * IMAGE_BYTES
    assert sum(decoder.batches) == 7 + 2 * 3


def test_large_images_are_reduced_as_on_the_cpu(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    make_image(300, 400).save(path, quality=95)
    _, _, images, _ = build([path], decode_on_cpu, min_side=64)
    pixels = images.load([images.read(path)])[0]
    expected = load_image(path, 64)
    assert tuple(pixels.shape[1:]) == expected.shape[:2] == (75, 100)
    assert images.cached_bytes == 75 * 100 * 3
    assert abs(pixels.permute(1, 2, 0).numpy().astype(int) - expected).mean() < 2


def test_images_cached_on_host_are_not_decoded_again(paths: list[Path]) -> None:
    decoder = CountingDecoder()
    device_loader, loader, _, _ = build(paths, decoder, host_budget=10**9)
    loader.images.fill_decoded_cache()
    assert_same_views(device_loader, loader, 1)
    assert decoder.batches == []


def test_cpu_decodes_file_when_device_fails(paths: list[Path]) -> None:
    decoder = CountingDecoder(paths[1])
    device_loader, loader, images, notes = build(paths, decoder, budget=0)
    assert_same_views(device_loader, loader, 1)
    assert decoder.batches == [3, 1, 1, 1, 2, 2]
    decoder.batches.clear()
    assert_same_views(device_loader, loader, 2)
    assert decoder.batches == [2, 2, 2], "the file is not tried again"
    assert images.decoder_failure is None
    assert notes == []


def test_failing_decoder_is_reported_once(paths: list[Path]) -> None:
    device_loader, loader, images, notes = build(paths, failing_decoder)
    for view in (1, 2):
        assert_same_views(device_loader, loader, view)
    assert images.decoder_failure is not None
    assert len(notes) == 1
    assert notes[0] == (
        "The GPU cannot decode JPEG files (torchvision not compiled with nvJPEG support): the CPU decodes them."
    )


def test_decoder_is_rejected_when_sizes_differ(paths: list[Path]) -> None:
    def transpose(encoded: list[Tensor], device: torch.device) -> list[Tensor]:
        return [image.transpose(1, 2) for image in decode_on_cpu(encoded, device)]

    device_loader, loader, images, _ = build(paths, transpose)
    assert_same_views(device_loader, loader, 1)
    assert images.decoder_failure is not None


def error_message(device_loader: DeviceLoader | ImageLoader) -> str:
    with pytest.raises(DecodeError) as error:
        list(device_loader(keys(1)))
    return str(error.value)


@pytest.mark.parametrize("fault", ["cut", "garbage", "missing", "empty", "changed", "git-lfs"])
def test_invalid_file_raises_same_error_as_cpu(paths: list[Path], fault: str) -> None:
    path = paths[4]
    if fault == "changed":
        device_loader, loader, _, _ = build(paths, decode_on_cpu)
        shutil.copy(paths[5], path)
    else:
        encoded = path.read_bytes()
        content = {
            "cut": encoded[: len(encoded) // 2],
            "garbage": b"\xff\xd8" + bytes(range(200)) + b"\xff\xd9",
            "empty": b"",
        }
        path.unlink()
        if fault != "missing":
            path.write_bytes(content.get(fault, b"version https://git-lfs.github.com/spec/v1\n"))
        device_loader, loader, _, _ = build(paths, decode_on_cpu)
    assert error_message(device_loader) == error_message(loader)
    assert str(path) in error_message(device_loader)


def test_corrupt_file_raises_when_device_fails(paths: list[Path]) -> None:
    encoded = bytearray(paths[4].read_bytes())
    start = len(encoded) // 2
    # Invalid Huffman codes; the header and the end are intact.
    encoded[start : start + 400] = b"\xff\xda" * 200
    paths[4].write_bytes(encoded)
    device_loader, loader, _, _ = build(paths, CountingDecoder(paths[4]))
    with pytest.raises(DecodeError):
        load_image(paths[4])
    assert error_message(device_loader) == error_message(loader)


def test_abandoned_epoch_does_not_affect_next(paths: list[Path]) -> None:
    device_loader, loader, _, _ = build(paths, decode_on_cpu)
    next(device_loader(keys(1)))
    assert_same_views(device_loader, loader, 2)


def test_decoder_call_is_limited_in_bytes(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgetl.train.data.gpu_images._MAX_DECODED_BYTES", 2 * IMAGE_BYTES)
    decoder = CountingDecoder()
    device_loader, _, _, _ = build(paths, decoder)
    list(device_loader([[(1, index) for index in range(IMAGES)]]))
    assert decoder.batches == [2, 2, 2, 1]


def test_cpu_composes_transparent_files(tmp_path: Path) -> None:
    path = tmp_path / "clear.png"
    pixels = np.zeros((40, 40, 4), np.uint8)
    Image.fromarray(pixels).save(path)
    _, _, images, _ = build([path], failing_decoder)
    assert int(images.load([images.read(path)])[0].min()) == 255
