"""Do other runtimes give a bundle's answers? python -m tools.checks.other_runtimes [RUN...]

Each run is exported with `--input tensor` as fp32 and int8. Both files must pass `onnx.checker` in full mode, and OpenVINO and OpenCV's
dnn module, each in an environment of its own without edgetl, and onnxruntime-web in headless Chromium, must choose onnxruntime's label on
every reference image. What is known not to work is expected not to, by name: a line that changes its mind fails. Without a RUN small ones
are trained on generated pictures. See docs/guide/runtimes.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from edgetl.core.config.export import ExportConfig
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.paths import RunDirectory
from edgetl.demo.images.dataset import generate_inspection_dataset
from edgetl.device.runtime.bundle import Bundle, Variant, open_bundle
from edgetl.device.runtime.classifier import open_bundle_classifier
from edgetl.device.runtime.preprocessing import preprocess
from edgetl.export.exporter import export_run
from edgetl.export.web.runtime import RUNTIME, VERSION
from edgetl.train.finetune import finetune
from tools.checks.browser import browser_logits
from tools.checks.device_install import environment

ARCHITECTURES = ("mobilenet_v3_small", "mobilenet_v2")
"""With squeeze-and-excitation, hard swish and hard sigmoid; and without."""

_ANSWER = """
import json, sys
import numpy as np
model, inputs = sys.argv[1], np.load(sys.argv[2])
{body}
print(json.dumps(np.concatenate(logits).tolist()))
"""
_OPENVINO = """
import openvino
# Without the hint a CPU that has bfloat16 computes fp32 files in it.
compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
logits = [compiled(image[None])["logits"] for image in inputs]
"""
_OPENCV = """
import cv2
network, logits = cv2.dnn.readNetFromONNX(model{engine}), []
for image in inputs:
    network.setInput(image[None])
    logits.append(network.forward("logits").reshape(1, -1))
"""


CLOSE = 0.1
"""Logits that differ by less are a draw."""


@dataclass(frozen=True)
class Runtime:
    """A way to run a file."""

    name: str
    package: str = ""
    """As pip knows it; none for what runs in a browser."""
    body: str = ""
    """Python: `model` (path) and `inputs` (float32 [images, 3, S, S]) to `logits` (a list of float32 [1, classes])."""
    known: tuple[tuple[str, str], ...] = ()
    """(architecture, variant) that it is known not to read, see docs/guide/runtimes.md."""


RUNTIMES = (
    Runtime("OpenVINO", "openvino", _OPENVINO),
    Runtime("OpenCV 4", "opencv-python-headless<5", _OPENCV.format(engine="")),
    Runtime(
        "OpenCV 5, classic engine",
        "opencv-python-headless>=5",
        _OPENCV.format(engine=", engine=cv2.dnn.ENGINE_CLASSIC"),
    ),
    Runtime(
        "OpenCV 5, new engine",
        "opencv-python-headless>=5",
        _OPENCV.format(engine=", engine=cv2.dnn.ENGINE_NEW"),
        (("mobilenet_v3_small", "int8"),),
    ),
    Runtime(f"{RUNTIME} {VERSION} in Chromium"),
)


def small_run(folder: Path, architecture: str) -> RunDirectory:
    """A run that knows a little: untrained logits would differ by nothing worth comparing."""
    data = generate_inspection_dataset(folder / "data", train=40, val=16, size=96)
    weights = "builtin" if architecture == "mobilenet_v3_small" else "none"
    return finetune(
        FinetuneConfig(
            data, folder / "run", architecture, weights, image_size=96, epochs=5, finetune_epochs=3
        )
    )


def compare(found: NDArray[np.float32], expected: NDArray[np.float32]) -> tuple[bool, str]:
    """Whether two runtimes' logits [images, classes] choose alike, and the figures in words.

    int8 kernels round each in their own way: where onnxruntime's own two best logits are nearer than CLOSE, another choice is no mistake.
    """
    best = np.sort(expected, axis=1)
    same = found.argmax(1) == expected.argmax(1)
    close = best[:, -1] - best[:, -2] < CLOSE
    figures = f"same top-1 on {same.sum()} of {len(same)}, largest difference {np.abs(found - expected).max():.2g}"
    undecided = int((~same & close).sum())
    return bool((same | close).all()), figures + (
        f", {undecided} too close to call" if undecided else ""
    )


def check(bundle: Bundle, variant: Variant, pythons: dict[str, Path], folder: Path) -> list[str]:
    """A line for each runtime; those that fail begin with FAILED."""
    file = bundle.variant_path(variant)
    onnx.checker.check_model(onnx.load(file), full_check=True)
    golden = bundle.load_golden()
    inputs = np.concatenate(
        [preprocess(image, bundle.preprocessing) for image in golden.load_images()]
    )
    classifier = open_bundle_classifier(bundle, variant.name)
    expected = np.concatenate([classifier.run(image[None])[0] for image in inputs])
    lines = [f"{variant.name}: onnx.checker, full: passed"]
    for runtime in RUNTIMES:
        known = (bundle.model, variant.name) in runtime.known
        try:
            found = (
                runtime_logits(runtime, pythons, file, inputs, folder)
                if runtime.package
                else browser_logits(file, inputs)
            )
        except RuntimeError as words:
            lines.append(
                f"{'' if known else 'FAILED '}{variant.name}: {runtime.name}: cannot run it, {'as known' if known else words}"
            )
            continue
        right, figures = compare(found, expected)
        lines.append(
            f"{'' if right != known else 'FAILED '}{variant.name}: {runtime.name}: {figures}"
        )
    return lines


def runtime_logits(
    runtime: Runtime,
    pythons: dict[str, Path],
    file: Path,
    inputs: NDArray[np.float32],
    folder: Path,
) -> NDArray[np.float32]:
    """Logits [images, classes] of a Python package in its environment.

    Raises:
        RuntimeError: it does not run the file; its last words.
    """
    np.save(folder / "inputs.npy", inputs)
    command = [
        pythons[runtime.package],
        "-I",
        "-c",
        _ANSWER.format(body=runtime.body),
        file.resolve(),
        folder / "inputs.npy",
    ]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        )
    return np.asarray(json.loads(done.stdout), np.float32)


def main() -> None:
    runs = [RunDirectory.open(Path(argument)) for argument in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        packages = dict.fromkeys(runtime.package for runtime in RUNTIMES if runtime.package)
        pythons = {
            package: environment(folder / f"env{number}", "numpy", package, tested=False)
            for number, package in enumerate(packages)
        }
        runs = runs or [
            small_run(folder / architecture, architecture) for architecture in ARCHITECTURES
        ]
        lines: list[str] = []
        for number, run in enumerate(runs):
            output = folder / f"bundle{number}"
            export_run(
                run,
                ExportConfig(
                    output=output, input="tensor", variants=("fp32", "int8"), search="quick"
                ),
            )
            bundle = open_bundle(output)
            print(f"{bundle.model}, {len(bundle.labels)} classes, {run.path.name}", flush=True)
            for variant in bundle.variants:
                found = check(bundle, variant, pythons, folder)
                print("\n".join(f"  {line}" for line in found), flush=True)
                lines += found
    failed = [line for line in lines if line.startswith("FAILED")]
    sys.exit(f"{len(failed)} of {len(lines)} checks failed" if failed else 0)


if __name__ == "__main__":
    main()
