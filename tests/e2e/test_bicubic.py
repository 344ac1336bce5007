"""A run with bicubic preprocessing through training, export and the device's commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from edgetl.core.artifacts.model_metadata import ModelMetadata
from edgetl.core.artifacts.run_config import read_run_configuration
from edgetl.core.config.export import ExportConfig
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.device.predict import predict
from edgetl.device.verify import verify
from edgetl.export.exporter import export_run
from edgetl.train.finetune import finetune
from tests.conftest import ARCHITECTURE, IMAGE_SIZE
from tests.helpers.clients import read_closest_labels


@pytest.mark.slow
def test_bicubic_run_exports_and_predicts_as_trained(
    parts: Path, random_weights: Path, tmp_path: Path
) -> None:
    config = FinetuneConfig(
        parts,
        tmp_path / "run",
        ARCHITECTURE,
        str(random_weights),
        IMAGE_SIZE,
        interpolation="bicubic",
        epochs=1,
        finetune_epochs=0,
        workers=0,
    )
    run = finetune(config)
    configuration = read_run_configuration(run)
    assert configuration.preprocessing.interpolation == "bicubic"
    assert configuration.config.interpolation == "bicubic"

    bundle = export_run(run.path, ExportConfig(output=tmp_path / "image", fixed_size=(96, 128)))
    for variant in bundle.variants:
        assert variant.parity.path.max_grey_levels <= 1
        model = onnx.load(bundle.variant_path(variant))
        properties = {entry.key: entry.value for entry in model.metadata_props}
        metadata = ModelMetadata.from_properties(properties)
        assert metadata is not None
        assert metadata.preprocessing == configuration.preprocessing
    assert all(result.passed for result in verify(bundle))

    tensor_bundle = export_run(run.path, ExportConfig(output=tmp_path / "tensor", input="tensor"))
    photos = tmp_path / "photos"
    photos.mkdir()
    source = Image.open(next((parts / "val").rglob("*.jpg")))
    for side in (40, 130, 500):
        source.resize((side, side + 7), Image.Resampling.LANCZOS).save(photos / f"{side}.png")
    rows = {Path(row.path).name: row for row in predict(bundle, photos)}
    command = [sys.executable, "-I", tensor_bundle.directory.path / "predict.py"]
    client = subprocess.run(
        [*command, *photos.iterdir()], capture_output=True, text=True, check=True
    )
    for path, (label, probability) in read_closest_labels(client.stdout).items():
        expected_label, expected_probability = rows[Path(path).name].top_labels[0]
        assert label == expected_label
        np.testing.assert_allclose(probability, expected_probability, atol=5e-3)
