"""ONNX Runtime on the GPU: where nodes run, what they answer, and that nothing falls back."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.device.runtime.bundle import open_bundle
from edgetl.device.runtime.classifier import Classifier, open_bundle_classifier
from edgetl.device.runtime.placement import COMPUTE_OPERATORS
from edgetl.device.runtime.profile import profile_nodes
from edgetl.device.runtime.providers import PROVIDERS
from edgetl.device.runtime.session import create_session
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
"""Height and width in pixels: smaller and larger than the network's input, upright and wide."""


def check_placement(settings: Settings, record: Record) -> None:
    """Step `placement`."""
    for variant in ("fp32", "fp16", "int8"):
        with record.attempt(f"{variant} runs"):
            _check_variant(settings, record, variant)
    with record.attempt("a refusal can be provoked"):
        _check_refusal(settings, record)


def _check_variant(settings: Settings, record: Record, variant: str) -> None:
    bundle = open_bundle(settings.run)
    here = open_bundle_classifier(bundle, variant, settings.device)
    reference = open_bundle_classifier(bundle, variant, "cpu")
    differences, largest, failures = [], 0.0, []
    for number, (height, width) in enumerate(SIZES):
        image = photo(np.random.default_rng(number), number % 4, (width, height))
        try:
            logits = _logits(here, image)
        except Exception as error:  # onnxruntime's exceptions share no base class
            failures.append(f"{height} x {width}: {str(error).splitlines()[0]}")
            continue
        expected = _logits(reference, image)
        differences.append(float(np.abs(logits - expected).max()))
        largest = max(largest, float(np.abs(expected).max()))
    text = f"{variant}: images of {len(SIZES)} sizes run on {settings.device}"
    record.require(text, not failures, "; ".join(failures))
    tolerance = max(0.05, 0.01 * largest, bundle.select_variant(variant).tolerance or 0.0)
    worst = max(differences, default=math.inf)
    detail = f"differ by {worst:.3g} at most, tolerance {tolerance:.3g}"
    record.require(f"{variant}: the logits are the CPU's", worst <= tolerance, detail)
    _check_nodes(
        settings, record, variant, bundle.variant_path(bundle.select_variant(variant)), here
    )


def _check_nodes(
    settings: Settings, record: Record, variant: str, file: Path, classifier: Classifier
) -> None:
    image = photo(np.random.default_rng(0), 0, (640, 480))
    name = classifier.session.get_inputs()[0].name
    open_session = partial(create_session, file, settings.device, None)
    nodes = profile_nodes(
        lambda prefix: open_session(profile_prefix=prefix),
        {name: classifier.prepare_input(image)},
        1,
    )
    placed = Counter(node.provider for node in nodes)
    record.measure(**{f"{variant} nodes": dict(placed)})
    on_cpu = [
        node.name
        for node in nodes
        if node.operator in COMPUTE_OPERATORS and node.provider == PROVIDERS["cpu"]
    ]
    kept = settings.device == "cpu" or not on_cpu
    record.require(f"{variant}: no compute node is on the CPU", kept, ", ".join(on_cpu[:5]))


def _logits(classifier: Classifier, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    return classifier.run(classifier.prepare_input(image))[0]


def _check_refusal(settings: Settings, record: Record) -> None:
    # The CUDA provider takes this node and refuses it when it runs, as EPFail; onnxruntime's Python
    # would then make the session anew on the CPU and answer from there.
    session = create_session(
        write_refused_resize(settings.folder / "refused.onnx"), settings.device
    )
    image = np.zeros((1, 512, 512, 3), np.uint8)
    try:
        answer: Any = session.run(None, {"image": image})[0].shape
    except Exception as error:  # onnxruntime's exceptions share no base class
        answer = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    if settings.device == "cuda":
        record.require("a refusal of the CUDA provider is raised", isinstance(answer, str), answer)
    else:
        record.require("the CPU runs what CUDA refuses", answer == (1, 128, 128, 3), answer)


def write_refused_resize(path: Path) -> Path:
    """Write an ONNX file with an antialiased Resize of uint8 [batch, height, width, 3] to 128 x 128."""
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
