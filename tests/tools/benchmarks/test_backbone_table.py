"""Figures of architectures, measured at a small size."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgetl.core.errors import ConfigError
from edgetl.export.bundle_writer import read_back
from edgetl.export.graph.assemble import extract_network
from edgetl.export.random_init import write_untrained
from edgetl.export.variants import operator_times
from edgetl.train.model.stock_models import check_architecture
from tools.benchmarks import backbone_table
from tools.benchmarks.backbone_table import (
    InferenceTimer,
    count_macs,
    list_backbones,
    measure_backbone,
    measure_table,
    quantize_untrained,
    read_metadata,
)
from tools.repo.models_page import ANCHOR, BackboneFigures, read_table


@pytest.mark.parametrize(
    ("architecture", "millions"),
    # Sandler et al. (2018) state 300 M for MobileNetV2, He et al. (2016) 1.8 G for ResNet-18.
    [("mobilenet_v2", 301), ("resnet18", 1814)],
)
def test_macs_match_published_counts(architecture: str, millions: int) -> None:
    assert count_macs(architecture, 224) / 1e6 == pytest.approx(millions, abs=1)


def test_every_architecture_of_the_page_exists() -> None:
    names = list_backbones()
    assert len(names) == len(set(names))
    assert ANCHOR in names
    for name in names:
        check_architecture(name)


def test_every_convolution_is_quantized(tmp_path: Path) -> None:
    file = tmp_path / "fp32.onnx"
    write_untrained("mobilenet_v3_small", 32, 10, 0, 1, file)
    model = read_back(file)
    network = quantize_untrained(extract_network(model), read_metadata(model).preprocessing)
    types = operator_times(network)
    assert types["QLinearConv"].nodes == 52
    assert "Conv" not in types
    assert "HardSwish" not in types


def test_architecture_is_measured_in_fp32_and_int8(tmp_path: Path) -> None:
    anchor = tmp_path / "anchor.onnx"
    write_untrained(ANCHOR, 32, 10, 0, 1, anchor)
    row = measure_backbone("mobilenet_v3_small", 32, anchor, 6, tmp_path)
    assert (row.parameters, row.imagenet_top1, row.failed) == (2_542_856, 67.668, None)
    assert row.macs == count_macs("mobilenet_v3_small", 32)
    assert row.anchor_ms is not None
    assert row.fp32_over_anchor is not None
    assert 0.1 < row.fp32_over_anchor < 5
    assert row.int8_over_anchor is not None
    assert row.int8_speedup is not None
    ratio, low, high = row.int8_speedup
    assert low <= ratio <= high
    assert ratio == pytest.approx(row.fp32_over_anchor / row.int8_over_anchor, rel=0.5)
    assert bool(row.slow_operators) == (ratio < 1.3)


def test_time_leaves_out_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file.onnx"
    write_untrained(ANCHOR, 64, 10, 0, 1, file)
    timer = InferenceTimer(file)
    undisturbed_ms = timer.measure_block_ms()
    run = timer._session.run
    monkeypatch.setattr(
        timer, "_session", SimpleNamespace(run=lambda *feed: (time.sleep(0.05), run(*feed)))
    )
    assert timer.measure_block_ms() < undisturbed_ms + 25


def test_measured_architectures_are_kept_and_failures_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def measure(architecture: str, *_: object) -> BackboneFigures:
        calls.append(architecture)
        if architecture == "resnet18":
            raise ValueError("no kernel\nand more lines")
        return BackboneFigures(architecture, anchor_ms=float(len(calls)))

    monkeypatch.setattr(backbone_table, "measure_backbone", measure)
    monkeypatch.setattr(backbone_table, "write_untrained", lambda *_: None)
    file = tmp_path / "table.json"
    measure_table(["squeezenet1_1", "resnet18"], file, 3)
    table = measure_table(["mobilenet_v2", "squeezenet1_1"], file, 3)
    assert calls == ["squeezenet1_1", "resnet18", "mobilenet_v2"]
    assert table == read_table(file)
    assert [(row.architecture, row.failed) for row in table.rows] == [
        ("mobilenet_v2", None), ("resnet18", "no kernel"), ("squeezenet1_1", None),
    ]  # fmt: skip
    assert table.anchor_ms == 2.0
    measure_table(["squeezenet1_1"], file, 3, remeasure=True)
    assert calls[3:] == ["squeezenet1_1"]
    with pytest.raises(ConfigError, match="other conditions"):
        measure_table([], file, 4)
