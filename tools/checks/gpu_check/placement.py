"""ONNX Runtime on the GPU: node placement, agreement with the CPU, and no silent fallback."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.device.runtime.bundle import open_bundle
from edgetl.device.runtime.classifier import Classifier, open_classifier
from edgetl.device.runtime.placement import COMPUTE_OPERATORS
from edgetl.device.runtime.profile import profile_nodes
from edgetl.device.runtime.providers import PROVIDERS
from edgetl.device.runtime.session import create_session
from edgetl.device.runtime.sessions.onnxruntime_session import OnnxRuntimeSession
from tools.checks.gpu_check.photos import photo
from tools.checks.gpu_check.record import Record
from tools.checks.gpu_check.settings import Settings

SIZES = (
    (64, 48),
    (224, 224),
    (256, 256),
    (300, 225),
    (375, 500),
    (480, 640),
    (1080, 1920),
    (3000, 4000),
)
"""Height and width in pixels: smaller and larger than the model's input, portrait and landscape."""


def check_placement(settings: Settings, record: Record) -> None:
    """Run step `placement`: check each variant and the refusal of an unsupported node."""
    for variant in ("fp32", "fp16", "int8"):
        with record.attempt(f"{variant} runs"):
            _check_variant(settings, record, variant)
    with record.attempt("an unsupported node can be run"):
        _check_refusal(settings, record)


def _check_variant(settings: Settings, record: Record, variant: str) -> None:
    bundle = open_bundle(settings.run)
    classifier = open_classifier(bundle, variant, settings.device)
    reference = open_classifier(bundle, variant, "cpu")
    differences = []
    failures = []
    largest = 0.0
    for number, (height, width) in enumerate(SIZES):
        image = photo(np.random.default_rng(number), number % 4, (width, height))
        try:
            logits = _logits(classifier, image)
        except Exception as error:  # onnxruntime's exceptions have no common base class
            failures.append(f"{height} x {width}: {str(error).splitlines()[0]}")
            continue
        expected = _logits(reference, image)
        differences.append(float(np.abs(logits - expected).max()))
        largest = max(largest, float(np.abs(expected).max()))
    text = f"{variant}: images of {len(SIZES)} sizes run on {settings.device}"
    record.require(text, not failures, "; ".join(failures))
    tolerance = max(0.05, 0.01 * largest, bundle.select_variant(variant).tolerance or 0.0)
    worst = max(differences, default=math.inf)
    detail = f"largest difference {worst:.3g}, tolerance {tolerance:.3g}"
    record.require(f"{variant}: the logits match the CPU", worst <= tolerance, detail)
    file = bundle.variant_path(bundle.select_variant(variant))
    _check_nodes(settings, record, variant, file, classifier)


def _check_nodes(
    settings: Settings, record: Record, variant: str, file: Path, classifier: Classifier
) -> None:
    image = photo(np.random.default_rng(0), 0, (640, 480))
    assert isinstance(classifier.session, OnnxRuntimeSession)
    name = classifier.session.session.get_inputs()[0].name
    open_session = partial(create_session, file, settings.device, None)
    nodes = profile_nodes(
        lambda prefix: open_session(profile_prefix=prefix),
        {name: classifier.prepare_input(image)},
        1,
    )
    node_counts = Counter(node.provider for node in nodes)
    record.measure(**{f"{variant} nodes": dict(node_counts)})
    cpu_nodes = [
        node.node
        for node in nodes
        if node.operator in COMPUTE_OPERATORS and node.provider == PROVIDERS["cpu"]
    ]
    passed = settings.device == "cpu" or not cpu_nodes
    record.require(f"{variant}: no compute node is on the CPU", passed, ", ".join(cpu_nodes[:5]))


def _logits(classifier: Classifier, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    return classifier.run(classifier.prepare_input(image)).logits


def _check_refusal(settings: Settings, record: Record) -> None:
    # The CUDA provider accepts this node and fails with EPFail when it runs; onnxruntime's Python
    # API would then recreate the session on the CPU and continue there.
    path = write_refused_resize(settings.folder / "refused.onnx")
    session = create_session(path, settings.device)
    image = np.zeros((1, 512, 512, 3), np.uint8)
    try:
        outcome: Any = session.run(None, {"image": image})[0].shape
    except Exception as error:  # onnxruntime's exceptions have no common base class
        outcome = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    if settings.device == "cuda":
        record.require("an error of the CUDA provider is raised", isinstance(outcome, str), outcome)
    else:
        record.require(
            "the CPU runs the node that CUDA rejects", outcome == (1, 128, 128, 3), outcome
        )


def write_refused_resize(path: Path) -> Path:
    """Write an ONNX file that resizes uint8 [batch, height, width, 3] to 128 x 128, antialiased."""
    import onnx
    from onnx import TensorProto, helper

    shape: list[str | int | None] = ["batch", "height", "width", 3]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, shape)
    small = helper.make_tensor_value_info("small", TensorProto.UINT8, [1, 128, 128, 3])
    sizes = helper.make_tensor("sizes", TensorProto.INT64, [4], [1, 128, 128, 3])
    node = helper.make_node(
        "Resize", ["image", "", "", "sizes"], ["small"], mode="linear", antialias=1
    )
    graph = helper.make_graph([node], "refused", [image], [small], [sizes])
    opset = helper.make_opsetid("", 18)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), str(path))
    return path
