"""The preprocessing function against torchvision's own transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms as T

from edgetl.core.errors import ConfigError
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.runtime.preprocessing import preprocess


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(32, 128),
    st.integers(0, 40),
    st.integers(0, 9),
)
@example(67, 33, 32, 0, 0)
def test_equals_torchvision_on_pillow_images(
    height: int, width: int, crop: int, margin: int, seed: int
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    contract = Preprocessing(crop + margin, crop)
    classic = T.Compose(
        [
            T.Resize(contract.resize),
            T.CenterCrop(crop),
            T.ToTensor(),
            T.Normalize(contract.mean, contract.std),
        ]
    )
    expected = classic(Image.fromarray(image)).numpy()
    # Pillow 13 takes the columns first where more than twice as many rows go as columns: one grey level (docs/decisions/001).
    resized_height, resized_width = contract.compute_resized_size(height, width)
    columns_first = height - resized_height > 2 * (width - resized_width)
    grey_level = 1 / (255 * min(contract.std))
    assert np.abs(preprocess(image, contract)[0] - expected).max() < (
        grey_level + 1e-5 if columns_first else 1e-5
    )


def test_gives_a_contiguous_float_batch() -> None:
    tensor = preprocess(np.zeros((50, 70, 3), np.uint8), Preprocessing(40, 32))
    assert tensor.shape == (1, 3, 32, 32)
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    assert torch.from_numpy(tensor).is_contiguous()


def test_contract_survives_json() -> None:
    contract = Preprocessing(232, 224, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert Preprocessing.from_json(contract.to_json()) == contract


@pytest.mark.parametrize(
    "change",
    [{"color": "BGR"}, {"interpolation": "bicubic"}, {"mean": [0.5]}, {"crop": "x"}, {"crop": 300}],
)
def test_contract_refuses_what_it_cannot_do(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Preprocessing.from_json({**Preprocessing(256, 224).to_json(), **change})
    content = Preprocessing(256, 224).to_json()
    del content["std"]
    with pytest.raises(ConfigError):
        Preprocessing.from_json(content)


def test_classic_ratio() -> None:
    assert Preprocessing.for_image_size(224) == Preprocessing(256, 224)
    assert Preprocessing.for_image_size(96).resize == 110
