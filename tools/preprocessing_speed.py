"""Time preprocessing inside the ONNX graph against Pillow and NumPy: python -m tools.preprocessing_speed PHOTO [--size 224].

Both take a decoded photo and give the network's float32 input, one thread, the photo scaled to three sizes. Rounds alternate between the
two; the figure is the ratio of medians, with the spread of the rounds' own ratios.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from edgetl.core.preprocessing import Preprocessing
from edgetl.device.images import load_image
from edgetl.export.preprocessing_graph import IMAGE, PIXELS, preprocessing_graph

SIZES = ((500, 375), (1920, 1080), (4032, 3024))
"""Widths and heights."""
OPSET, IR_VERSION = 18, 10
ROUNDS, SECONDS = 9, 0.6


def classic(image: NDArray[np.uint8], contract: Preprocessing) -> NDArray[np.float32]:
    """What people write: one `Image.resize`, a crop, and NumPy."""
    height, width = contract.resized(*image.shape[:2])
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    top, left = contract.crop_box(height, width)
    crop = np.asarray(resized.crop((left, top, left + contract.crop, top + contract.crop)))
    scaled = crop.astype(np.float32) / np.float32(255)
    normalised = (scaled - np.asarray(contract.mean, np.float32)) / np.asarray(contract.std, np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1)[None])


def _in_graph(session: onnxruntime.InferenceSession, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    answer: NDArray[np.float32] = session.run([PIXELS], {IMAGE: image[None]})[0]
    return answer


def main() -> None:
    """Print one row a size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("photo", metavar="PHOTO", type=Path)
    parser.add_argument("--size", type=int, default=224, help="side of the network's input, pixels")
    given = parser.parse_args()
    contract = Preprocessing.for_image_size(given.size)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = preprocessing_graph(contract, OPSET, IR_VERSION).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    photo = Image.fromarray(load_image(given.photo))
    print(f"Pillow {Image.__version__}, onnxruntime {onnxruntime.__version__}, to {given.size} px, one thread, {ROUNDS} rounds")  # type: ignore[attr-defined]
    for width, height in SIZES:
        image = np.asarray(photo.resize((width, height), Image.Resampling.LANCZOS))
        runs: dict[str, Callable[[], NDArray[np.float32]]] = {
            "classic": partial(classic, image, contract),
            "graph": partial(_in_graph, session, image),
        }
        difference = float(np.abs(runs["classic"]() - runs["graph"]()).max())
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
        ratios = sorted(graph / plain for plain, graph in zip(medians["classic"], medians["graph"], strict=True))
        print(
            f"{width}x{height}: Pillow and NumPy {median(medians['classic']):.2f} ms, graph {median(medians['graph']):.2f} ms, "
            f"ratio {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}), largest difference {difference:.3f}"
        )


if __name__ == "__main__":
    main()
