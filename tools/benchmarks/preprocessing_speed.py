"""Time preprocessing inside the ONNX graph against Pillow and NumPy.

    python -m tools.benchmarks.preprocessing_speed PHOTO [--size 224] [--interpolation bicubic]

With `--before FILE`, the baseline is the preprocessing graph of an earlier commit instead, and the
outputs must be bit-identical.

Both sides convert a decoded photo to the model's float32 input in one thread, for several sizes of
the photo; sizes below the resize target are enlarged. Rounds alternate between the two. The result
is the median of the rounds' ratios, with their range.
"""

from __future__ import annotations

import argparse
import runpy
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import get_args

import numpy as np
import onnx
import onnxruntime
import PIL
from numpy.typing import NDArray
from PIL import Image

from edgetl.core.preprocessing import Interpolation, Preprocessing
from edgetl.device.runtime.images import load_image
from edgetl.export.graph.preprocessing import IMAGE, PIXELS, preprocessing_graph

SIZES = ((150, 100), (256, 192), (256, 256), (500, 375), (1920, 1080), (4032, 3024))
"""Width and height of the photo, in pixels."""
OPSET, IR_VERSION = 18, 10
ROUNDS, ROUND_SECONDS = 9, 0.6


def preprocess_with_pillow(
    image: NDArray[np.uint8], preprocessing: Preprocessing
) -> NDArray[np.float32]:
    """Preprocess with `Image.resize`, a crop and NumPy, as is common practice.

    Args:
        image: [height, width, 3].
        preprocessing: sizes and normalization.

    Returns:
        [1, 3, crop, crop].
    """
    height, width = preprocessing.compute_resized_size(*image.shape[:2])
    resampling = Image.Resampling[preprocessing.interpolation.upper()]
    resized = Image.fromarray(image).resize((width, height), resampling)
    top, left = preprocessing.compute_crop_offset(height, width)
    box = (left, top, left + preprocessing.crop, top + preprocessing.crop)
    crop = np.asarray(resized.crop(box))
    scaled = crop.astype(np.float32) / np.float32(255)
    mean = np.asarray(preprocessing.mean, np.float32)
    std = np.asarray(preprocessing.std, np.float32)
    normalized = (scaled - mean) / std
    return np.ascontiguousarray(normalized.transpose(2, 0, 1)[None])


def _preprocess_in_graph(
    session: onnxruntime.InferenceSession, image: NDArray[np.uint8]
) -> NDArray[np.float32]:
    pixels: NDArray[np.float32] = session.run([PIXELS], {IMAGE: image[None]})[0]
    return pixels


def _create_session(
    build: Callable[..., onnx.ModelProto], preprocessing: Preprocessing
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = build(preprocessing, OPSET, IR_VERSION).SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _time_round_ms(run: Callable[[], object]) -> float:
    """Call `run` for half of ROUND_SECONDS, at least three times, and return the median time."""
    seconds: list[float] = []
    deadline = time.perf_counter() + ROUND_SECONDS / 2
    while time.perf_counter() < deadline or len(seconds) < 3:
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return median(seconds) * 1e3


def main() -> None:
    """Print one line per size of the photo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("photo", metavar="PHOTO", type=Path, help="image file to preprocess")
    parser.add_argument(
        "--size", type=int, default=224, help="side of the model's input, in pixels [224]"
    )
    parser.add_argument(
        "--interpolation",
        choices=get_args(Interpolation),
        default="bilinear",
        help="interpolation of the resize [bilinear]",
    )
    parser.add_argument(
        "--before",
        type=Path,
        metavar="FILE",
        help="earlier edgetl/export/graph/preprocessing.py to use as the baseline",
    )
    arguments = parser.parse_args()
    sizes = Preprocessing.for_image_size(arguments.size)
    preprocessing = replace(sizes, interpolation=arguments.interpolation)
    session = _create_session(preprocessing_graph, preprocessing)
    earlier = None
    if arguments.before:
        earlier_module = runpy.run_path(str(arguments.before))
        earlier = _create_session(earlier_module["preprocessing_graph"], preprocessing)
    baseline = "earlier graph" if earlier else "Pillow and NumPy"
    photo = Image.fromarray(load_image(arguments.photo))
    print(
        f"Pillow {PIL.__version__}, onnxruntime {onnxruntime.__version__}, to {arguments.size} px, "
        f"{arguments.interpolation}, one thread, {ROUNDS} rounds"
    )
    for width, height in SIZES:
        image = np.asarray(photo.resize((width, height), Image.Resampling.LANCZOS))
        runs: dict[str, Callable[[], NDArray[np.float32]]] = {
            "baseline": partial(preprocess_with_pillow, image, preprocessing),
            "graph": partial(_preprocess_in_graph, session, image),
        }
        if earlier:
            runs["baseline"] = partial(_preprocess_in_graph, earlier, image)
        difference = float(np.abs(runs["baseline"]() - runs["graph"]()).max())
        if earlier and difference:
            raise SystemExit(
                f"{width}x{height}: the outputs of the two graphs differ by {difference:g}."
            )
        medians_ms: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(ROUNDS):
            for name, run in runs.items():
                medians_ms[name].append(_time_round_ms(run))
        pairs = zip(medians_ms["baseline"], medians_ms["graph"], strict=True)
        ratios = sorted(graph_ms / baseline_ms for baseline_ms, graph_ms in pairs)
        print(
            f"{width}x{height}: {baseline} {median(medians_ms['baseline']):.2f} ms, "
            f"graph {median(medians_ms['graph']):.2f} ms, "
            f"ratio {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}), "
            f"largest difference {difference:.3f}"
        )


if __name__ == "__main__":
    main()
