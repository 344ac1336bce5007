"""The bundle's Python client preprocesses as edgetl does."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgetl.core.preprocessing import Interpolation, Preprocessing
from edgetl.device.runtime.preprocessing import preprocess
from edgetl.export import client


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(height=st.integers(1, 200), width=st.integers(1, 200), seed=st.integers(0, 9))
def test_tensor_input_equals_preprocess(
    tmp_path: Path, interpolation: Interpolation, height: int, width: int, seed: int
) -> None:
    preprocessing = Preprocessing(73, 64, interpolation=interpolation)
    manifest = {
        "recommended": None,
        "variants": [{"name": "fp32", "input": "tensor"}],
        "preprocessing": preprocessing.to_json(),
    }
    (tmp_path / "bundle.json").write_text(json.dumps(manifest))
    shutil.copy(Path(client.__file__).parent / "predict.py", tmp_path)
    network_input = runpy.run_path(str(tmp_path / "predict.py"))["network_input"]
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    np.testing.assert_allclose(
        network_input(image), preprocess(image, preprocessing), rtol=0, atol=1e-6
    )
