"""Exports in tests: graphs of PyTorch's exporter, which takes seconds, and images are cached."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import onnx
import pytest
from torch import nn

from edgetl.core.config.export import ExportConfig
from edgetl.device.runtime.bundle import Bundle
from edgetl.export import exporter
from edgetl.export.exporter import export_architecture
from edgetl.export.golden import generate_images
from edgetl.export.graph.torch_export import NetworkGraph, export_network_graph
from tests.conftest import ARCHITECTURE, IMAGE_SIZE
from tests.helpers.shared_files import build_once


def cache_graphs(factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> None:
    """Let exports in this process reuse the graph of a network with the same weights."""
    patch.setattr(exporter, "export_network_graph", partial(_cached_graph, factory))


def _cached_graph(
    factory: pytest.TempPathFactory, network: nn.Module, *arguments: int
) -> NetworkGraph:
    digest = hashlib.sha256(f"{network} {arguments}".encode())
    for tensor in network.state_dict().values():
        digest.update(tensor.numpy().tobytes())

    def build(folder: Path) -> None:
        graph = export_network_graph(copy.deepcopy(network).eval(), *arguments)
        onnx.save(graph.model, folder / "graph.onnx")
        (folder / "modules.json").write_text(json.dumps(graph.module_outputs))

    folder = build_once(factory, f"graph-{digest.hexdigest()[:16]}", build)
    modules = json.loads((folder / "modules.json").read_text())
    return NetworkGraph(onnx.load(folder / "graph.onnx"), modules)


def _copy_generated_images(factory: pytest.TempPathFactory, folder: Path, count: int) -> list[Path]:
    name = f"generated-images-{count}"
    generated = build_once(factory, name, lambda target: generate_images(target, count))
    shutil.copytree(generated, folder, dirs_exist_ok=True)
    return [folder / f"generated_{number}.png" for number in range(count)]


class Export(Protocol):
    """Export of the test architecture to the folder `output`."""

    def __call__(self, output: Path, images: Path | None = None, **options: Any) -> Bundle: ...


def quick_export(
    factory: pytest.TempPathFactory, weights: Path, patch: pytest.MonkeyPatch
) -> Export:
    """Return an export function that reuses graphs and images as long as `patch` lasts."""
    cache_graphs(factory, patch)
    patch.setattr(exporter, "generate_images", partial(_copy_generated_images, factory))

    def export(output: Path, images: Path | None = None, **options: Any) -> Bundle:
        config = ExportConfig(output=output, **options)
        return export_architecture(ARCHITECTURE, str(weights), config, images, IMAGE_SIZE)

    return export
