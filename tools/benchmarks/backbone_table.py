"""Measure architectures on this CPU in fp32 and int8, for docs/models.md.

    python -m tools.benchmarks.backbone_table [ARCHITECTURE...] [--rounds 3] [--remeasure]

Without names, all of TORCHVISION_MODELS and the tested architectures of the other sources. The
figures are stored in tools/benchmarks/backbones.json after every architecture; those that are in
the file already are skipped. `python -m tools.repo.docs` writes the page from the file.

Weights are random, which does not change the latency: `edgetl candidates` measures the same way.
int8 is quantized from generated images by the scheme that `edgetl export` tries first.

Architectures are measured one after the other, for minutes each, on a machine whose speed changes.
So every round also times an anchor, MobileNetV2 in fp32, in turns with the architecture. Latencies
on the page are ratios to the anchor, multiplied by the anchor's median over all measurements.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch.utils.flop_counter import FlopCounterMode

from edgetl.core.architectures import load_architectures, source_of
from edgetl.core.artifacts.bench_rows import BenchRow, round_ratios
from edgetl.core.artifacts.model_metadata import ModelMetadata
from edgetl.core.config.candidates import CandidatesConfig
from edgetl.core.errors import ConfigError, EdgetlError
from edgetl.core.files import sha256_file, write_json
from edgetl.core.preprocessing import Preprocessing
from edgetl.core.statistics import paired_speedup
from edgetl.core.typed_json import to_json
from edgetl.device.bench.backend import ModelSource
from edgetl.device.bench.correctness_gate import run_gates
from edgetl.device.bench.protocol import QUICK_PROTOCOL, BenchProtocol
from edgetl.device.bench.rounds import RoundRunner
from edgetl.device.bench.target import BenchCase
from edgetl.device.hardware.info import collect_device_info, has_int8_dot_product
from edgetl.export.bundle_writer import read_back
from edgetl.export.graph.assemble import assemble, extract_network
from edgetl.export.quantize.calibration import Calibration
from edgetl.export.quantize.images import CroppedImages
from edgetl.export.quantize.int8_search import likely_schemes
from edgetl.export.quantize.qdq import quantize
from edgetl.export.quantize.rewrites import rewrite_operators
from edgetl.export.random_init import write_untrained
from edgetl.export.variants import operator_times, slowest_operators_text
from edgetl.train.model.sources.base import source_for
from edgetl.train.model.stock_models import build_meta_model, get_architecture
from tools.repo.models_page import (
    ANCHOR,
    RESULT,
    WORTHWHILE_SPEEDUP,
    BackboneFigures,
    BackboneTable,
    read_table,
)

CLASSES = CandidatesConfig.classes
SEED = CandidatesConfig.seed
CALIBRATION_IMAGES = 8
PROTOCOL = replace(QUICK_PROTOCOL, block_runs=30)
"""A block of a slow architecture would take ten seconds with the protocol's 100 runs."""
TORCHVISION_MODELS = (
    "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_b1", "efficientnet_b2",
    "efficientnet_v2_s", "googlenet", "mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3",
    "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "regnet_x_400mf",
    "regnet_x_800mf", "regnet_y_400mf", "regnet_y_800mf", "resnet18", "resnet34", "resnet50",
    "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0",
    "squeezenet1_0", "squeezenet1_1",
)  # fmt: skip
"""Those of torchvision's that are small enough for a CPU, and a few larger ones to compare."""


def list_backbones() -> list[str]:
    """Return the architectures of the page."""
    others = [name for name in load_architectures() if source_of(name) != "torchvision"]
    return [*TORCHVISION_MODELS, *others]


def count_macs(architecture: str, image_size: int) -> int:
    """Count the multiply-accumulates of one image with 1000 classes, on the meta device."""
    model = build_meta_model(architecture, image_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, image_size, image_size, device="meta"))
    return int(counter.get_total_flops()) // 2


def quantize_untrained(network: onnx.ModelProto, preprocessing: Preprocessing) -> onnx.ModelProto:
    """Quantize a network with random weights.

    The ranges come from generated images, and the accuracy is meaningless. The operators, and with
    them the latency, are those of the trained network, unless the search for int8 has to restore
    layers to float.
    """
    inferred = onnx.shape_inference.infer_shapes(network)
    # A traced graph has no names, by which the quantizer leaves out nodes.
    for index, node in enumerate(inferred.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    rewritten = rewrite_operators(inferred)
    scheme = next(likely_schemes(has_int8_dot_product()))
    images = generate_calibration_images(preprocessing)
    return quantize(rewritten, Calibration(rewritten, images).ranges(scheme.method), scheme)


def generate_calibration_images(preprocessing: Preprocessing) -> CroppedImages:
    """Return crops of random pixels."""
    shape = (CALIBRATION_IMAGES, preprocessing.crop, preprocessing.crop, 3)
    pixels = np.random.default_rng(SEED).integers(0, 256, shape, np.uint8)
    return CroppedImages(pixels, None, preprocessing)


def read_metadata(model: onnx.ModelProto) -> ModelMetadata:
    """Return the metadata of a file that edgetl wrote."""
    properties = {entry.key: entry.value for entry in model.metadata_props}
    metadata = ModelMetadata.from_properties(properties)
    assert metadata is not None
    return metadata


def measure_backbone(
    architecture: str,
    image_size: int,
    anchor: Path,
    threads: int,
    rounds: int,
    folder: Path,
    protocol: BenchProtocol = PROTOCOL,
) -> BackboneFigures:
    """Export an architecture with random weights, quantize it and time both files.

    Args:
        architecture: name of the architecture.
        image_size: side of the square input, pixels.
        anchor: the anchor's file.
        threads: intra-op threads.
        rounds: number of rounds.
        folder: for temporary files.
        protocol: lengths of blocks and warm-up.
    """
    fp32, int8 = folder / "fp32.onnx", folder / "int8.onnx"
    write_untrained(architecture, image_size, CLASSES, SEED, threads, fp32)
    model = read_back(fp32)
    metadata = read_metadata(model)
    network = quantize_untrained(extract_network(model), metadata.preprocessing)
    content = assemble(network, metadata.preprocessing, "image", metadata)
    int8.write_bytes(content.SerializeToString(deterministic=True))
    files = {"anchor": anchor, "fp32": fp32, "int8": int8}
    rows = time_files(files, threads, rounds, folder, protocol)
    speedup = paired_speedup(round_ratios(rows["fp32"], rows["int8"]))
    slow_operators = ""
    if speedup.ratio < WORTHWHILE_SPEEDUP:
        slow_operators = slowest_operators_text(operator_times(network))
    return BackboneFigures(
        architecture=architecture,
        image_size=image_size,
        parameters=get_architecture(architecture).parameters,
        macs=count_macs(architecture, image_size),
        imagenet_top1=source_for(architecture).imagenet_top1(architecture),
        fp32_over_anchor=_compare(rows["fp32"], rows["anchor"]),
        int8_over_anchor=_compare(rows["int8"], rows["anchor"]),
        int8_speedup=(speedup.ratio, speedup.low, speedup.high),
        anchor_ms=rows["anchor"].p50_ms,
        slow_operators=slow_operators,
        measured=datetime.now(UTC).date().isoformat(),
    )


def _compare(row: BenchRow, anchor: BenchRow) -> float:
    return paired_speedup(round_ratios(row, anchor)).ratio


def time_files(
    files: dict[str, Path], threads: int, rounds: int, folder: Path, protocol: BenchProtocol
) -> dict[str, BenchRow]:
    """Time untrained files in scope `model` in the same rounds; return their rows by name."""
    cases = []
    for name, file in files.items():
        preprocessing = read_metadata(read_back(file)).preprocessing
        source = ModelSource(file, threads, "cpu", "image", preprocessing)
        size_bytes = file.stat().st_size
        case = BenchCase("onnxruntime", name, source, sha256_file(file), size_bytes, ("model",))
        cases.append(case)
    gated_cases, notes = run_gates(cases, None, protocol, folder, lambda *_: None)
    if notes:
        raise ConfigError("; ".join(notes))
    runner = RoundRunner()
    runner.measure(gated_cases, rounds, SEED, folder, lambda *_: None)
    for error in runner.failures.values():
        raise error
    return {item.case.variant: runner.attach_rounds(item.rows[0]) for item in gated_cases}


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmarks.backbone_table",
        description="Measure architectures on this CPU in fp32 and int8.",
    )
    parser.add_argument("architectures", metavar="ARCHITECTURE", nargs="*")
    parser.add_argument("--threads", type=int, default=1, help="intra-op threads [1]")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds [3]")
    parser.add_argument(
        "--remeasure", action="store_true", help="measure architectures again that are in the file"
    )
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    return parser.parse_args(arguments)


def measure_table(
    names: Sequence[str], file: Path, threads: int, rounds: int, remeasure: bool = False
) -> BackboneTable:
    """Measure the architectures that the file lacks, and write it after each of them.

    Raises:
        ConfigError: the file was measured on another CPU, or with other threads or rounds.
    """
    cpu = collect_device_info().cpu or "unknown CPU"
    table = BackboneTable(cpu, threads, rounds, onnxruntime.__version__)
    if file.is_file():
        earlier = read_table(file)
        if replace(earlier, rows=()) != table:
            raise ConfigError(
                f"{file} was measured under other conditions: {replace(earlier, rows=())}, now "
                f"{table}. Delete it to start again."
            )
        table = earlier
    with tempfile.TemporaryDirectory(prefix="backbone-table-") as name:
        anchor = Path(name, "anchor.onnx")
        size = get_architecture(ANCHOR).image_size
        write_untrained(ANCHOR, size, CLASSES, SEED, threads, anchor)
        for architecture in names:
            others = tuple(row for row in table.rows if row.architecture != architecture)
            if len(others) < len(table.rows) and not remeasure:
                continue
            row = _measure_or_fail(architecture, anchor, threads, rounds, Path(name))
            rows = sorted((*others, row), key=lambda row: row.architecture)
            table = replace(table, rows=tuple(rows))
            write_json(file, to_json(table))
            print(f"{architecture}: {row.failed or row.int8_speedup}", file=sys.stderr, flush=True)
    return table


def _measure_or_fail(
    architecture: str, anchor: Path, threads: int, rounds: int, folder: Path
) -> BackboneFigures:
    try:
        size = get_architecture(architecture).image_size
        return measure_backbone(architecture, size, anchor, threads, rounds, folder)
    # PyTorch, onnx and onnxruntime raise any exception. A failure is a part of the table.
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return BackboneFigures(architecture, failed=lines[0])


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse_arguments(arguments)
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    names = options.architectures or list_backbones()
    try:
        measure_table(names, options.output, options.threads, options.rounds, options.remeasure)
    except EdgetlError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Interrupted. Repeat the command to resume.")


if __name__ == "__main__":
    main()
