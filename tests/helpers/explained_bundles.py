"""Bundle with the output `activation_maps`: a network that averages colors over a grid of cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from edgetl.core.artifacts.model_metadata import ModelMetadata
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import preprocess
from edgetl.device.runtime.session import create_session
from edgetl.export.graph.activation_maps import add_activation_maps
from edgetl.export.graph.assemble import assemble
from tests.helpers.bundles import write_bundle, write_pictures

LABELS = ("red", "green", "blue")
CELLS, CELL_SIDE = 4, 8
PREPROCESSING = Preprocessing(
    resize=CELLS * CELL_SIDE, crop=CELLS * CELL_SIDE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
)
RUN_ID = "0123456789ab"
COLOR_WEIGHTS = 6 * np.eye(3, dtype=np.float32) - 2
"""Weights [class, color] of the classifier; its bias is 0."""


def color_network() -> onnx.ModelProto:
    """Return a network whose three logits come from the mean color, `pixels` -> `logits`."""
    side = CELLS * CELL_SIDE
    network = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 18]>
        colors (float[batch, 3, {side}, {side}] pixels) => (float[batch, 3] logits) {{
            cells = AveragePool <kernel_shape = [{CELL_SIDE}, {CELL_SIDE}],
                strides = [{CELL_SIDE}, {CELL_SIDE}]> (pixels)
            mean = GlobalAveragePool (cells)
            color = Flatten (mean)
            logits = Gemm <transB = 1> (color, weight)
        }}"""
    )
    network.graph.initializer.append(numpy_helper.from_array(COLOR_WEIGHTS, "weight"))
    return network


def color_model(explain: bool = True) -> onnx.ModelProto:
    """Return the file of a bundle: `image` -> `logits`, `probabilities` and `activation_maps`."""
    network = color_network()
    if explain:
        network = add_activation_maps(network, network)
    metadata = ModelMetadata(LABELS, PREPROCESSING, "image", RUN_ID, activation_maps=explain)
    return assemble(network, PREPROCESSING, "image", metadata)


def write_color_bundle(folder: Path, explain: bool = True) -> Path:
    """Write a bundle of `color_model`."""
    paths = write_pictures(folder / "golden")
    session = create_session(color_network().SerializeToString())
    logits = [
        session.run(["logits"], {"pixels": preprocess(load_image(path), PREPROCESSING)})[0][0]
        for path in paths
    ]
    return write_bundle(
        folder,
        {"fp32": color_model(explain)},
        np.stack(logits),
        labels=list(LABELS),
        contract=PREPROCESSING,
        run_id=RUN_ID,
    )
