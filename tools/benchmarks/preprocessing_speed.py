"""Time preprocessing inside the ONNX graph against Pillow and NumPy: python -m tools.benchmarks.preprocessing_speed PHOTO [--size 224].

With `--before FILE`, a `preprocessing_graph.py` of an earlier commit takes the place of Pillow and NumPy; the answers must then
be equal to the bit. Sizes smaller than the resize target are enlarged.

Both take a decoded photo and give the network's float32 input, one thread, the photo scaled to several sizes. Rounds alternate between the
two; the figure is the ratio of medians, with the spread of the rounds' own ratios.
"""

from __future__ import annotations

import argparse
import runpy
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import onnx
import onnxruntime
import PIL
from numpy.typing import NDArray
from PIL import Image

from edgetl.core.preprocessing import Preprocessing
from edgetl.device.runtime.images import load_image
from edgetl.export.graph.preprocessing import IMAGE, PIXELS, preprocessing_graph

SIZES = ((150, 100), (256, 192), (256, 256), (500, 375), (1920, 1080), (4032, 3024))
"""Widths and heights."""
OPSET, IR_VERSION = 18, 10
ROUNDS, SECONDS = 9, 0.6


def classic(image: NDArray[np.uint8], contract: Preprocessing) -> NDArray[np.float32]:
    """What people write: one `Image.resize`, a crop, and NumPy."""
    height, width = contract.compute_resized_size(*image.shape[:2])
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    top, left = contract.compute_crop_offset(height, width)
    crop = np.asarray(resized.crop((left, top, left + contract.crop, top + contract.crop)))
    scaled = crop.astype(np.float32) / np.float32(255)
    normalised = (scaled - np.asarray(contract.mean, np.float32)) / np.asarray(
        contract.std, np.float32
    )
    return np.ascontiguousarray(normalised.transpose(2, 0, 1)[None])


def _in_graph(
    session: onnxruntime.InferenceSession, image: NDArray[np.uint8]
) -> NDArray[np.float32]:
    answer: NDArray[np.float32] = session.run([PIXELS], {IMAGE: image[None]})[0]
    return answer


def _session(
    build: Callable[..., onnx.ModelProto], contract: Preprocessing
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = build(contract, OPSET, IR_VERSION).SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def main() -> None:
    """Print one row a size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("photo", metavar="PHOTO", type=Path)
    parser.add_argument("--size", type=int, default=224, help="side of the network's input, pixels")
    parser.add_argument(
        "--before",
        type=Path,
        metavar="FILE",
        help="an earlier edgetl/export/graph/preprocessing.py to compare with",
    )
    given = parser.parse_args()
    contract = Preprocessing.for_image_size(given.size)
    session = _session(preprocessing_graph, contract)
    earlier = (
        _session(runpy.run_path(str(given.before))["preprocessing_graph"], contract)
        if given.before
        else None
    )
    baseline = "earlier graph" if earlier else "Pillow and NumPy"
    photo = Image.fromarray(load_image(given.photo))
    print(
        f"Pillow {PIL.__version__}, onnxruntime {onnxruntime.__version__}, to {given.size} px, "
        f"one thread, {ROUNDS} rounds"
    )
    for width, height in SIZES:
        image = np.asarray(photo.resize((width, height), Image.Resampling.LANCZOS))
        runs: dict[str, Callable[[], NDArray[np.float32]]] = {
            "baseline": partial(_in_graph, earlier, image)
            if earlier
            else partial(classic, image, contract),
            "graph": partial(_in_graph, session, image),
        }
        difference = float(np.abs(runs["baseline"]() - runs["graph"]()).max())
        if earlier and difference:
            raise SystemExit(f"{width}x{height}: the two graphs differ by {difference:g}.")
        medians: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(ROUNDS):
            for name, run in runs.items():
                taken: list[float] = []
                until = time.perf_counter() + SECONDS / 2
                while time.perf_counter() < until or len(taken) < 3:
                    started = time.perf_counter()
                    run()
                    taken.append(time.perf_counter() - started)
                medians[name].append(median(taken) * 1e3)
        ratios = sorted(
            graph / plain
            for plain, graph in zip(medians["baseline"], medians["graph"], strict=True)
        )
        print(
            f"{width}x{height}: {baseline} {median(medians['baseline']):.2f} ms, graph {median(medians['graph']):.2f} ms, "
            f"ratio {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}), largest difference {difference:.3f}"
        )


if __name__ == "__main__":
    main()
