"""Preprocessing as ONNX equals Pillow, but for rare roundings, at any size and in batches."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.core.preprocessing import Interpolation, Preprocessing
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import normalize, resize_and_crop
from edgetl.device.runtime.session import create_session
from edgetl.export.golden import _generate_image
from edgetl.export.graph.assemble import with_outputs
from edgetl.export.graph.preprocessing import preprocessing_graph
from edgetl.export.parity.diagnosis import PIXEL_TOLERANCE

INTERPOLATIONS = st.sampled_from(["bilinear", "bicubic"])
both_interpolations = pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])


@cache
def session(preprocessing: Preprocessing, opset: int = 18) -> onnxruntime.InferenceSession:
    model = with_outputs(preprocessing_graph(preprocessing, opset, 10), ["cropped"])
    return create_session(model.SerializeToString())


def check(images: np.ndarray, preprocessing: Preprocessing, opset: int = 18) -> None:
    pixels, planes = session(preprocessing, opset).run(["pixels", "cropped"], {"image": images})
    cropped = planes.transpose(0, 2, 3, 1)
    expected = np.stack([resize_and_crop(image, preprocessing) for image in images])
    levels = np.abs(cropped.astype(int) - expected.astype(int))
    # Enlarging is exact; in shrinking each of the two passes may round a few pixels differently.
    assert levels.max() <= (
        0 if min(images.shape[1:3]) <= preprocessing.resize else PIXEL_TOLERANCE
    )
    assert (levels > 0).mean() < 0.04
    assert (levels > 1).mean() < 0.001
    assert np.abs(pixels - normalize(cropped, preprocessing)).max() < 1e-5


@settings(max_examples=80, deadline=None)
@given(
    st.integers(5, 700),
    st.integers(5, 700),
    st.sampled_from([(256, 224), (110, 96), (37, 32), (96, 96)]),
    INTERPOLATIONS,
    st.sampled_from([1, 2, 5]),
    st.integers(0, 99),
)
def test_graph_equals_pillow_at_any_size_and_batch(
    height: int,
    width: int,
    sizes: tuple[int, int],
    interpolation: Interpolation,
    batch: int,
    seed: int,
) -> None:
    generator = np.random.default_rng(seed)
    images = [_generate_image(generator, height, width) for _ in range(batch)]
    check(np.stack(images), Preprocessing(*sizes, interpolation=interpolation))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 96), st.integers(1, 400), INTERPOLATIONS, st.integers(0, 99))
def test_enlarging_black_and_white_noise_is_exact(
    shorter: int, longer: int, interpolation: Interpolation, seed: int
) -> None:
    """Bicubic sums of such pixels are often below 0 or above 255."""
    noise = np.random.default_rng(seed).integers(0, 2, (shorter, longer, 3), np.uint8) * 255
    preprocessing = Preprocessing(96, 84, interpolation=interpolation)
    check(noise[None], preprocessing)
    check(noise.transpose(1, 0, 2)[None], preprocessing)


@pytest.mark.parametrize(
    ("height", "width"),
    [(227, 256), (195, 256), (256, 182), (240, 232), (255, 256), (1, 1), (1, 9), (33, 195)],
)
@both_interpolations
def test_enlarging_rounds_halfway_values_as_pillow(
    height: int, width: int, interpolation: Interpolation
) -> None:
    """Ratios such as 9:8 put many values exactly between two grey levels."""
    image = _generate_image(np.random.default_rng(5), height, width)
    check(image[None], Preprocessing(256, 224, interpolation=interpolation))


@pytest.mark.parametrize("opset", [18, 19, 20, 21])
@both_interpolations
def test_graph_equals_pillow_in_every_opset(opset: int, interpolation: Interpolation) -> None:
    preprocessing = Preprocessing(256, 224, interpolation=interpolation)
    for height in (301, 117):
        image = _generate_image(np.random.default_rng(1), height, 517)
        check(image[None], preprocessing, opset)


@both_interpolations
def test_graph_equals_pillow_on_real_photos(shared: Path, interpolation: Interpolation) -> None:
    photos = sorted((shared / "data/flowers5/val").rglob("*.jpg"))[::11]
    photos += [
        shared / "data/odd" / name
        for name in (
            "IMG_5874.JPG",
            "exif_Landscape_6.jpg",
            "tulips_panorama_1024x187.jpg",
            "cat.4821.jpg",
        )
    ]
    assert len(photos) > 20
    for photo in photos:
        # Most of the photos are enlarged to 256 pixels and shrunk to 165.
        for resize in (256, 165):
            preprocessing = Preprocessing(resize, 144, interpolation=interpolation)
            check(load_image(photo)[None], preprocessing)


def test_cubic_coefficient_is_pillows() -> None:
    """With ONNX's default the picture is sharper by several grey levels."""
    model = preprocessing_graph(Preprocessing(224, 224, interpolation="bicubic"), 18, 10)
    image = _generate_image(np.random.default_rng(3), 900, 1200)
    assert max_difference(model, image, "bicubic") <= 1
    coefficient = next(
        attribute for attribute in _resize(model).attribute if attribute.name == "cubic_coeff_a"
    )
    coefficient.f = -0.75
    assert max_difference(model, image, "bicubic") > 3


@both_interpolations
def test_borders_need_exclude_outside(interpolation: Interpolation) -> None:
    """Crop size and resize are equal, so that the borders are inside the crop."""
    image = _generate_image(np.random.default_rng(3), 900, 1200)
    model = preprocessing_graph(Preprocessing(224, 224, interpolation=interpolation), 18, 10)
    assert max_difference(model, image, interpolation) <= 1
    exclude = next(
        attribute for attribute in _resize(model).attribute if attribute.name == "exclude_outside"
    )
    exclude.i = 0
    assert max_difference(model, image, interpolation) > PIXEL_TOLERANCE


def max_difference(model: onnx.ModelProto, image: np.ndarray, interpolation: Interpolation) -> int:
    """Return the largest difference from Pillow of a graph with resize and crop to 224 pixels."""
    session = create_session(with_outputs(model, ["cropped"]).SerializeToString())
    (planes,) = session.run(["cropped"], {"image": image[None]})
    expected = resize_and_crop(image, Preprocessing(224, 224, interpolation=interpolation))
    return int(np.abs(planes[0].transpose(1, 2, 0).astype(int) - expected).max())


def _resize(model: onnx.ModelProto) -> onnx.NodeProto:
    shrink = next(node for node in model.graph.node if node.op_type == "If").attribute[1].g
    return next(node for node in shrink.node if node.op_type == "Resize")
