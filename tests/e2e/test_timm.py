"""A network of timm with branches: trained with them, exported without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import torch

from edgetl.core.config.candidates import CandidatesConfig
from edgetl.core.config.export import ExportConfig
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.device.bench.protocol import BenchProtocol
from edgetl.export.candidates import time_candidates
from edgetl.export.exporter import export_run
from edgetl.train.finetune import finetune
from tests.helpers.trained_runs import load_model

BRIEF = BenchProtocol(
    block_seconds=0.01, block_runs=10, window_seconds=0.005, window_runs=3, max_windows=3
)
MODEL = "timm:repvgg_a0"


def count_convolutions(model: torch.nn.Module) -> int:
    return sum(isinstance(module, torch.nn.Conv2d) for module in model.modules())


def test_branches_are_trained_and_fused_for_the_device(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    config = FinetuneConfig(
        data=make_images("data", ["blue", "green"], count=10),
        output=tmp_path / "run",
        model=MODEL,
        weights="none",
        image_size=32,
        epochs=1,
        finetune_epochs=1,
        batch_size=8,
        precision="fp32",
    )
    finetune(config)
    trained = load_model(tmp_path / "run").model
    bundle = export_run(tmp_path / "run", ExportConfig(golden="generated"))
    assert bundle.manifest.run.model == MODEL
    assert bundle.manifest.fused_branches
    network = bundle.manifest.variants[0].parity.network
    assert network is not None
    assert network.max_abs_diff <= ExportConfig.network_tolerance
    card = bundle.directory.model_card.read_text()
    assert "fused into single layers" in card
    operators = [node.op_type for node in onnx.load(bundle.directory.variant("fp32")).graph.node]
    # RepVGG-A0 has 22 blocks of a 3x3 and a 1x1 convolution. The baseline of `bench` keeps both.
    assert (operators.count("Conv"), count_convolutions(trained)) == (22, 44)


def test_candidates_are_fused_too() -> None:
    config = CandidatesConfig((MODEL, "mobilenet_v2"), classes=2, image_sizes=(32,), rounds=2)
    result = time_candidates(config, None, BRIEF)
    assert [row.architecture for row in result.rows if row.failed] == []
    assert {row.architecture: row.imagenet_top1 for row in result.rows}[MODEL] is None
