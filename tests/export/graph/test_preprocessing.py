"""Preprocessing as ONNX equals Pillow to one grey level, at any size and in batches."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.core.preprocessing import Preprocessing
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import normalize, resize_and_crop
from edgetl.device.runtime.session import create_session
from edgetl.export.golden import _generate_image
from edgetl.export.graph.assemble import with_outputs
from edgetl.export.graph.preprocessing import preprocessing_graph


@cache
def session(preprocessing: Preprocessing, opset: int = 18) -> onnxruntime.InferenceSession:
    model = with_outputs(preprocessing_graph(preprocessing, opset, 10), ["cropped"])
    return create_session(model.SerializeToString())


def check(images: np.ndarray, preprocessing: Preprocessing, opset: int = 18) -> None:
    pixels, planes = session(preprocessing, opset).run(["pixels", "cropped"], {"image": images})
    cropped = planes.transpose(0, 2, 3, 1)
    expected = np.stack([resize_and_crop(image, preprocessing) for image in images])
    levels = np.abs(cropped.astype(int) - expected.astype(int))
    # Enlarging is exact; shrinking may differ by one grey level in a few pixels.
    assert levels.max() <= (0 if min(images.shape[1:3]) <= preprocessing.resize else 1)
    assert (levels > 0).mean() < 0.04
    assert np.abs(pixels - normalize(cropped, preprocessing)).max() < 1e-5


@settings(max_examples=80, deadline=None)
@given(
    st.integers(5, 700),
    st.integers(5, 700),
    st.sampled_from([Preprocessing(256, 224), Preprocessing(110, 96), Preprocessing(37, 32)]),
    st.sampled_from([1, 2, 5]),
    st.integers(0, 99),
)
def test_graph_equals_pillow_at_any_size_and_batch(
    height: int, width: int, preprocessing: Preprocessing, batch: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    images = [_generate_image(generator, height, width) for _ in range(batch)]
    check(np.stack(images), preprocessing)


@pytest.mark.parametrize(
    ("height", "width"),
    [(227, 256), (195, 256), (256, 182), (240, 232), (255, 256), (1, 1), (1, 9), (33, 195)],
)
def test_enlarging_rounds_halfway_values_as_pillow(height: int, width: int) -> None:
    """Ratios such as 9:8 put many values exactly between two grey levels."""
    check(_generate_image(np.random.default_rng(5), height, width)[None], Preprocessing(256, 224))


@pytest.mark.parametrize("opset", [18, 19, 20, 21])
def test_graph_equals_pillow_in_every_opset(opset: int) -> None:
    check(_generate_image(np.random.default_rng(1), 301, 517)[None], Preprocessing(256, 224), opset)


def test_graph_equals_pillow_on_real_photos(shared: Path) -> None:
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
        check(load_image(photo)[None], Preprocessing(256, 224))


def test_borders_need_exclude_outside() -> None:
    """Crop size and resize are equal, so that the borders are inside the crop."""
    image = _generate_image(np.random.default_rng(3), 900, 1200)
    preprocessing = Preprocessing(224, 224)
    check(image[None], preprocessing)
    model = preprocessing_graph(preprocessing, 18, 10)
    shrink = next(node for node in model.graph.node if node.op_type == "If").attribute[1].g
    resize = next(node for node in shrink.node if node.op_type == "Resize")
    next(attribute for attribute in resize.attribute if attribute.name == "exclude_outside").i = 0
    plain_session = create_session(with_outputs(model, ["cropped"]).SerializeToString())
    (planes,) = plain_session.run(["cropped"], {"image": image[None]})
    cropped = planes[0].transpose(1, 2, 0).astype(int)
    expected = resize_and_crop(image, preprocessing).astype(int)
    assert np.abs(cropped - expected).max() > 1
