"""Measure architectures on this CPU in fp32 and int8, for docs/models.md.

    python -m tools.benchmarks.backbone_table [ARCHITECTURE...] [--rounds 20] [--remeasure]

Without names, all of TORCHVISION_MODELS and the tested architectures of the other sources. The
figures are stored in tools/benchmarks/backbones.json after every architecture; those that are in
the file already are skipped. `python -m tools.repo.docs` writes the page from the file.

Weights are random, which does not change the latency: `edgetl candidates` measures the same way.
int8 is quantized from generated images by the scheme that `edgetl export` tries first.

The time is the processor time of the calling thread, which runs a session of one thread from start
to end. Unlike the latency it leaves out waiting for a core, so that it can be measured on a busy
machine; on a quiet one they are equal. Shared caches slow it down nevertheless. So every round also
times an anchor, MobileNetV2 in fp32, in turns with the architecture. Times on the page are ratios
to the anchor, multiplied by the anchor's median over all measurements.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import numpy as np
import onnx
import onnxruntime
import torch
from torch.utils.flop_counter import FlopCounterMode

from edgetl.core.architectures import (
    load_architectures,
    load_timm_architectures,
    source_of,
)
from edgetl.core.artifacts.model_metadata import ModelMetadata
from edgetl.core.config.candidates import CandidatesConfig
from edgetl.core.errors import ConfigError, EdgetlError
from edgetl.core.files import write_json
from edgetl.core.preprocessing import Preprocessing
from edgetl.core.statistics import paired_speedup
from edgetl.core.typed_json import to_json
from edgetl.device.hardware.info import collect_device_info, has_int8_dot_product
from edgetl.device.runtime.session import create_session
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
WARM_UP_RUNS = 5
BLOCK_MS = 40.0
"""Shortest processor time of a block."""
MIN_BLOCK_RUNS = 3
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
    return [*TORCHVISION_MODELS, *others, *load_timm_architectures()]


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
    architecture: str, image_size: int, anchor: Path, rounds: int, folder: Path
) -> BackboneFigures:
    """Export an architecture with random weights, quantize it and time both files.

    Args:
        architecture: name of the architecture.
        image_size: side of the square input, pixels.
        anchor: the anchor's file.
        rounds: number of rounds.
        folder: for temporary files.
    """
    fp32, int8 = folder / "fp32.onnx", folder / "int8.onnx"
    write_untrained(architecture, image_size, CLASSES, SEED, 1, fp32)
    model = read_back(fp32)
    metadata = read_metadata(model)
    network = quantize_untrained(extract_network(model), metadata.preprocessing)
    content = assemble(network, metadata.preprocessing, "image", metadata)
    int8.write_bytes(content.SerializeToString(deterministic=True))
    times = time_files({"anchor": anchor, "fp32": fp32, "int8": int8}, rounds)
    speedup = paired_speedup(_divide(times["fp32"], times["int8"]))
    slow_operators = ""
    if speedup.ratio < WORTHWHILE_SPEEDUP:
        slow_operators = slowest_operators_text(operator_times(network))
    return BackboneFigures(
        architecture=architecture,
        image_size=image_size,
        parameters=get_architecture(architecture).parameters,
        macs=count_macs(architecture, image_size),
        imagenet_top1=source_for(architecture).imagenet_top1(architecture),
        fp32_over_anchor=median(_divide(times["fp32"], times["anchor"])),
        int8_over_anchor=median(_divide(times["int8"], times["anchor"])),
        int8_speedup=(speedup.ratio, speedup.low, speedup.high),
        anchor_ms=median(times["anchor"]),
        slow_operators=slow_operators,
        measured=datetime.now(UTC).date().isoformat(),
    )


def _divide(first: Sequence[float], second: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(first, second, strict=True)]


def time_files(files: Mapping[str, Path], rounds: int) -> dict[str, list[float]]:
    """Time untrained files in turns, in random order within each round.

    Each has a session of one thread, and images for which the resize in the file is the identity,
    as in scope `model` of the benchmark.

    Returns:
        Median processor time of an inference in each round by name, in milliseconds.
    """
    timers = {name: InferenceTimer(file) for name, file in files.items()}
    generator = random.Random(SEED)
    times: dict[str, list[float]] = {name: [] for name in files}
    for _ in range(rounds):
        for name in generator.sample(list(files), len(files)):
            times[name].append(timers[name].measure_block_ms())
    return times


class InferenceTimer:
    """A session of one thread with its input."""

    def __init__(self, file: Path) -> None:
        side = read_metadata(read_back(file)).preprocessing.resize
        shape = (1, side, side, 3)
        image = np.random.default_rng(SEED).integers(0, 256, shape, np.uint8)
        self._session = create_session(file, threads=1, spinning=False)
        self._feed = {self._session.get_inputs()[0].name: image}
        warm_up_ms = [self._run_ms() for _ in range(WARM_UP_RUNS)]
        self._runs = max(MIN_BLOCK_RUNS, math.ceil(BLOCK_MS / min(warm_up_ms)))

    def measure_block_ms(self) -> float:
        """Return the median processor time of a block, after an untimed inference.

        The first inference after another session finds the caches full of that session's data.
        """
        self._run_ms()
        return median(self._run_ms() for _ in range(self._runs))

    def _run_ms(self) -> float:
        start = time.thread_time_ns()
        self._session.run(["logits"], self._feed)
        return (time.thread_time_ns() - start) / 1e6


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmarks.backbone_table",
        description="Measure architectures on this CPU in fp32 and int8.",
    )
    parser.add_argument("architectures", metavar="ARCHITECTURE", nargs="*")
    parser.add_argument("--rounds", type=int, default=20, help="number of rounds [20]")
    parser.add_argument(
        "--remeasure", action="store_true", help="measure architectures again that are in the file"
    )
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    return parser.parse_args(arguments)


def measure_table(
    names: Sequence[str], file: Path, rounds: int, remeasure: bool = False
) -> BackboneTable:
    """Measure the architectures that the file lacks, and write it after each of them.

    Raises:
        ConfigError: the file was measured on another CPU, or with other rounds or another onnxruntime.
    """
    cpu = collect_device_info().cpu or "unknown CPU"
    table = BackboneTable(cpu, rounds, onnxruntime.__version__)
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
        write_untrained(ANCHOR, size, CLASSES, SEED, 1, anchor)
        for architecture in names:
            others = tuple(row for row in table.rows if row.architecture != architecture)
            if len(others) < len(table.rows) and not remeasure:
                continue
            row = _measure_or_fail(architecture, anchor, rounds, Path(name))
            rows = sorted((*others, row), key=lambda row: row.architecture)
            table = replace(table, rows=tuple(rows))
            write_json(file, to_json(table))
            print(f"{architecture}: {row.failed or row.int8_speedup}", file=sys.stderr, flush=True)
    return table


def _measure_or_fail(architecture: str, anchor: Path, rounds: int, folder: Path) -> BackboneFigures:
    try:
        size = get_architecture(architecture).image_size
        return measure_backbone(architecture, size, anchor, rounds, folder)
    # PyTorch, onnx and onnxruntime raise any exception. A failure is a part of the table.
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return BackboneFigures(architecture, failed=lines[0])


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse_arguments(arguments)
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    names = options.architectures or list_backbones()
    try:
        measure_table(names, options.output, options.rounds, options.remeasure)
    except EdgetlError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Interrupted. Repeat the command to resume.")


if __name__ == "__main__":
    main()
