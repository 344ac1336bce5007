"""Test images change nothing but the test figures, from training to the bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

from edgetl.core.artifacts.bundle import LatencyRecord
from edgetl.core.config.export import ExportConfig
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import ExportError
from edgetl.core.paths import RunDirectory
from edgetl.export import exporter
from edgetl.export.exporter import export_run
from edgetl.train.finetune import finetune
from tests.helpers.graphs import cache_graphs

TINTS = {"dark": 30, "light": 200}
TIMES = {
    "seconds", "elapsed", "images_per_second", "fill_seconds", "milliseconds", "ms", "slow_because",
    "peak_memory_bytes", "frozen_blocks",
}  # fmt: skip
"""Keys of measured values, which differ between two equal runs; and of reused features."""


def write_images(folder: Path, count: int, seed: int, swapped: bool = False) -> None:
    generator = np.random.default_rng(seed)
    for label, tint in TINTS.items():
        if swapped:
            tint = 230 - tint
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = generator.integers(tint - 20, tint + 20, (56, 56 + number % 3, 3), np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")


def train(data: Path, output: Path, weights: Path) -> RunDirectory:
    # A network of few layers, because int8 takes its time for each.
    return finetune(
        FinetuneConfig(
            data,
            output=output,
            model="squeezenet1_1",
            weights=str(weights),
            image_size=48,
            epochs=2,
            finetune_epochs=1,
            deterministic=True,
        )
    )


def without(content: Any, names: set[str]) -> Any:
    """Return JSON content without the keys `names`, at any depth."""
    if isinstance(content, dict):
        return {key: without(value, names) for key, value in content.items() if key not in names}
    if isinstance(content, list):
        return [without(value, names) for value in content]
    return content


def read_results(run: RunDirectory, without_test: bool = True) -> dict[str, Any]:
    """Return all files of a run and its bundle, without times and test figures."""
    ignored = TIMES | {"fingerprint"} | ({"test", "test_accuracy"} if without_test else set())
    results: dict[str, Any] = {}
    for path in sorted(run.path.rglob("*")):
        name = path.relative_to(run.path).as_posix()
        if path.suffix == ".json":
            results[name] = without(json.loads(path.read_text()), ignored)
        elif path.suffix == ".jsonl":
            lines = path.read_text().splitlines()
            results[name] = [without(json.loads(line), ignored) for line in lines]
        elif path.is_file() and name not in ("test_predictions.csv", "bundle/README.md"):
            results[name] = path.read_bytes()
    return results


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[RunDirectory, dict[str, Any]]]:
    """Runs on the same training and validation images with other test images, and their results."""
    folder = tmp_path_factory.mktemp("held-out")
    data, output = folder / "data", folder / "run"
    torch.manual_seed(0)
    weights = folder / "weights.safetensors"
    save_file(torchvision.models.squeezenet1_1().state_dict(), weights)
    write_images(data / "train", 12, seed=0)
    write_images(data / "val", 4, seed=1)
    finished = {}
    with pytest.MonkeyPatch.context() as patch:
        cache_graphs(tmp_path_factory, patch)
        latency = LatencyRecord(None, 1, None, 0, reason="not timed")
        patch.setattr(
            exporter, "measure_variant_latencies", lambda *_: {"fp32": latency, "int8": latency}
        )
        patch.setattr("edgetl.export.quantize.scoring._measure_latency_ms", lambda *_: 1.0)
        for name in ("none", "matching", "swapped"):
            shutil.rmtree(data / "test", ignore_errors=True)
            if name != "none":
                write_images(data / "test", 3, seed=2 + len(finished), swapped=name == "swapped")
            run = train(data, output, weights)
            if name != "none":
                export_run(run, ExportConfig(variants=("fp32", "int8"), search="quick"))
            directory = RunDirectory(folder / name)
            results = read_results(run)
            output.rename(directory.path)
            finished[name] = directory, results
    return finished


@pytest.mark.parametrize("other", ["swapped", "none"])
def test_test_images_change_only_test_figures(
    runs: dict[str, tuple[RunDirectory, dict[str, Any]]], other: str
) -> None:
    (_, expected), (_, results) = runs["matching"], runs[other]
    if other == "none":
        # The run without test images was not exported.
        expected = {name: expected[name] for name in results}
        expected["config.json"] = without(expected["config.json"], {"test"})
        lines = expected["split.csv"].splitlines(keepends=True)
        expected["split.csv"] = b"".join(line for line in lines if b",test" not in line)
    assert expected.keys() == results.keys()
    for name, content in expected.items():
        assert results[name] == content, name
    names = {"weights.safetensors", "predictions.csv", "history.jsonl", "metrics.json"}
    if other == "swapped":
        names |= {"bundle/bundle.json", "bundle/int8.onnx", "bundle/golden/golden.npz"}
    assert names < results.keys()


def test_test_figures_come_from_the_test_images(
    runs: dict[str, tuple[RunDirectory, dict[str, Any]]],
) -> None:
    for name, accuracy in (("matching", 1.0), ("swapped", 0.0)):
        run, _ = runs[name]
        metrics = json.loads(run.metrics.read_text())
        assert metrics["val"]["accuracy"] == 1.0
        assert metrics["test"]["accuracy"] == accuracy
        manifest = json.loads((run.bundle / "bundle.json").read_text())
        assert [variant["name"] for variant in manifest["variants"]] == ["fp32", "int8"]
        for variant in manifest["variants"]:
            record = variant["test_accuracy"]
            assert record["split"] == "test"
            assert record["images"] == 6
            assert record["top1"] == accuracy
            assert record["flips"] == 0
            assert variant["accuracy"]["top1"] == 1.0
    metrics = json.loads(runs["none"][0].metrics.read_text())
    assert "test" not in metrics


def test_export_checks_test_accuracy_against_metrics(
    runs: dict[str, tuple[RunDirectory, dict[str, Any]]],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The images that are now in test/ are those of another run, with swapped labels."""
    cache_graphs(tmp_path_factory, monkeypatch)
    run, _ = runs["matching"]
    with pytest.raises(ExportError, match=r"6 test images is 0\.0%, but metrics\.json has 100\.0%"):
        export_run(run, ExportConfig(output=tmp_path / "bundle"))
    assert not (tmp_path / "bundle").exists()


def test_export_without_test_files_leaves_accuracy_out(
    runs: dict[str, tuple[RunDirectory, dict[str, Any]]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache_graphs(tmp_path_factory, monkeypatch)
    run, _ = runs["swapped"]
    data = Path(json.loads(run.config.read_text())["config"]["data"])
    shutil.move(data / "test", tmp_path / "moved")
    try:
        bundle = export_run(run, ExportConfig(output=tmp_path / "bundle"))
    finally:
        shutil.move(tmp_path / "moved", data / "test")
    assert bundle.select_variant("fp32").test_accuracy is None
    assert "6 of 6 not found" in caplog.text
