"""Files for LiteRT are proven like variants, and their client needs nothing but LiteRT."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetl.device.runtime.bundle import Bundle
from edgetl.device.runtime.classifier import open_classifier, run_images
from edgetl.device.runtime.images import list_images
from edgetl.device.verify import verify
from edgetl.export import exporter
from edgetl.export.formats.task import ConversionTask
from tests.helpers.graphs import quick_export

pytest.importorskip("ai_edge_litert")

from edgetl.export.formats.litert import convert_to_litert


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, random_weights: Path) -> Bundle:
    folder = tmp_path_factory.mktemp("litert")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "_add_latencies", lambda manifest, *arguments: manifest)
        export = quick_export(tmp_path_factory, random_weights, patch)
        return export(folder / "bundle", formats=("litert",))


def test_variant_is_proven_and_hashed(bundle: Bundle) -> None:
    assert [variant.name for variant in bundle.variants] == ["fp32", "litert-fp32"]
    variant = bundle.select_variant("litert-fp32")
    assert variant.parity.path.max_abs_diff <= variant.tolerance
    assert variant.parity.path.top1_agreement == 1
    assert [record.file for record in variant.files] == ["litert-fp32.tflite"]
    assert set(bundle.file_statuses.values()) == {"as proven"}


def test_classifier_gives_the_outputs_of_onnxruntime(bundle: Bundle) -> None:
    images = bundle.load_golden().load_images()
    outputs = run_images(open_classifier(bundle, runtime="litert"), images)
    expected = run_images(open_classifier(bundle), images)
    assert np.abs(outputs.logits - expected.logits).max() < 1e-3
    assert outputs.probabilities is not None
    assert expected.probabilities is not None
    assert np.abs(outputs.probabilities - expected.probabilities).max() < 1e-5


def test_verify_runs_litert(bundle: Bundle) -> None:
    results = {result.variant: result for result in verify(bundle)}
    assert results["litert-fp32"].passed
    assert results["litert-fp32"].runtime == "litert"


def test_client_labels_like_onnxruntime(bundle: Bundle) -> None:
    images = list_images(bundle.directory.golden)
    labels = []
    for client, arguments in (("predict.py", []), ("predict_litert.py", ["litert-fp32"])):
        process = subprocess.run(
            [sys.executable, bundle.directory.path / client, *arguments, *images],
            capture_output=True,
            text=True,
            check=True,
        )
        labels.append([line.split("\t")[1] for line in process.stdout.splitlines()])
    assert len(labels[0]) == len(images) > 0
    assert labels[0] == labels[1]


def test_missing_int8_variant_is_reported(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    random_weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tasks: list[ConversionTask] = []

    def keep_task(formats: object, task: ConversionTask, builder: object) -> tuple[Any, Any]:
        tasks.append(task)
        return [], {}

    monkeypatch.setattr(exporter, "_add_latencies", lambda manifest, *arguments: manifest)
    monkeypatch.setattr(exporter, "convert_to_formats", keep_task)
    export = quick_export(tmp_path_factory, random_weights, monkeypatch)
    export(tmp_path / "bundle", formats=("litert",))
    (tmp_path / "files").mkdir()
    task = replace(tasks[0], wants_int8=True, folder=tmp_path / "files")

    with caplog.at_level(logging.WARNING, "edgetl"):
        files = convert_to_litert(task)

    assert [file.name for file in files] == ["litert-fp32"]
    assert "litert-int8 is left out: there is no variant int8" in caplog.text
