"""The bundle's Python client preprocesses and labels as edgetl does."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgetl.core.preprocessing import Interpolation, Preprocessing
from edgetl.device.predict import predict
from edgetl.device.runtime.classifier import open_classifier
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import preprocess
from edgetl.export import client
from tests.helpers.bundles import write_pictures
from tests.helpers.confidence import add_confidence


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
    client_preprocess = runpy.run_path(str(tmp_path / "predict.py"))["preprocess"]
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    np.testing.assert_allclose(
        client_preprocess(image), preprocess(image, preprocessing), rtol=0, atol=1e-6
    )


def run_client(bundle: Path, photos: list[Path]) -> list[list[str]]:
    command = [sys.executable, "-I", bundle / "predict.py", *photos]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line.split("\t") for line in process.stdout.splitlines()]


def test_client_labels_unknown_images_as_predict(stock_bundle: Path, tmp_path: Path) -> None:
    photos = write_pictures(tmp_path / "photos", 4)
    plain = run_client(stock_bundle, photos)
    assert {len(columns) for columns in plain} == {3}
    bundle = shutil.copytree(stock_bundle, tmp_path / "bundle")
    logits = [open_classifier(bundle).run(load_image(path)[None]).logits.max() for path in photos]
    add_confidence(bundle, float(np.median(logits)))
    predictions = list(predict(bundle, photos))
    assert {prediction.is_unknown for prediction in predictions} == {True, False}
    assert run_client(bundle, photos) == [
        [
            path,
            str(prediction.label),
            probability,
            f"{prediction.unknown_score:.3f}",
            prediction.top_labels[0][0],
        ]
        for prediction, (path, _, probability) in zip(predictions, plain, strict=True)
    ]
