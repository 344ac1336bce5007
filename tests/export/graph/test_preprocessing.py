"""Preprocessing inside ONNX against Pillow: to one grey level, at any size, in batches."""

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
def session(contract: Preprocessing, opset: int = 18) -> onnxruntime.InferenceSession:
    return create_session(
        with_outputs(preprocessing_graph(contract, opset, 10), ["cropped"]).SerializeToString()
    )


def check(images: np.ndarray, contract: Preprocessing, opset: int = 18) -> None:
    pixels, planes = session(contract, opset).run(["pixels", "cropped"], {"image": images})
    cropped = planes.transpose(0, 2, 3, 1)
    expected = np.stack([resize_and_crop(image, contract) for image in images])
    levels = np.abs(cropped.astype(int) - expected.astype(int))
    # Enlarging equals Pillow to the bit, shrinking to one grey level in a few pixels.
    assert levels.max() <= (0 if min(images.shape[1:3]) <= contract.resize else 1)
    assert (levels > 0).mean() < 0.04
    assert np.abs(pixels - normalize(cropped, contract)).max() < 1e-5


@settings(max_examples=80, deadline=None)
@given(
    st.integers(5, 700),
    st.integers(5, 700),
    st.sampled_from([Preprocessing(256, 224), Preprocessing(110, 96), Preprocessing(37, 32)]),
    st.sampled_from([1, 2, 5]),
    st.integers(0, 99),
)
def test_equals_pillow_at_any_size_and_batch(
    height: int, width: int, contract: Preprocessing, batch: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    check(np.stack([_generate_image(generator, height, width) for _ in range(batch)]), contract)


@pytest.mark.parametrize(
    ("height", "width"),
    [(227, 256), (195, 256), (256, 182), (240, 232), (255, 256), (1, 1), (1, 9), (33, 195)],
)
def test_enlarging_is_exact_where_values_lie_halfway(height: int, width: int) -> None:
    """Ratios such as 9:8 put many values exactly between two grey levels; each must fall to Pillow's side."""
    check(_generate_image(np.random.default_rng(5), height, width)[None], Preprocessing(256, 224))


@pytest.mark.parametrize("opset", [18, 19, 20, 21])
def test_equals_pillow_in_every_opset(opset: int) -> None:
    check(_generate_image(np.random.default_rng(1), 301, 517)[None], Preprocessing(256, 224), opset)


def test_equals_pillow_on_real_photos(shared: Path) -> None:
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


def test_borders_are_right_where_the_plain_resize_is_not() -> None:
    """The crop equals the resize here, so the borders are in view; without exclude_outside they are off by several levels."""
    picture = _generate_image(np.random.default_rng(3), 900, 1200)
    contract = Preprocessing(224, 224)
    check(picture[None], contract)
    model = preprocessing_graph(contract, 18, 10)
    shrink = next(node for node in model.graph.node if node.op_type == "If").attribute[1].g
    resize = next(node for node in shrink.node if node.op_type == "Resize")
    next(attribute for attribute in resize.attribute if attribute.name == "exclude_outside").i = 0
    cropped = create_session(with_outputs(model, ["cropped"]).SerializeToString()).run(
        ["cropped"], {"image": picture[None]}
    )[0]
    assert (
        np.abs(
            cropped[0].transpose(1, 2, 0).astype(int)
            - resize_and_crop(picture, contract).astype(int)
        ).max()
        > 1
    )
