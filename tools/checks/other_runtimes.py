"""Check the logits and unknown scores of other runtimes against onnxruntime.

    python -m tools.checks.other_runtimes [RUN...]

Each run is exported with `--input tensor` as fp32 and int8. Both files must pass `onnx.checker` in
full mode. On every golden image, OpenVINO and OpenCV's dnn module, in separate environments without
edgetl, and onnxruntime-web in headless Chromium must predict onnxruntime's label and decide like
onnxruntime whether the image is unknown. Known failures are listed by name and must still fail.
Without a RUN, small models are trained on generated images. See docs/guide/runtimes.md.
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

from edgetl.core.artifacts.bundle import VariantRecord
from edgetl.core.artifacts.confidence import UNKNOWN_THRESHOLD
from edgetl.core.config.export import ExportConfig
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.paths import RunDirectory
from edgetl.demo.images.dataset import generate_inspection_dataset
from edgetl.device.runtime.bundle import Bundle, open_bundle
from edgetl.device.runtime.classifier import open_classifier
from edgetl.device.runtime.preprocessing import preprocess
from edgetl.export.exporter import export_run
from edgetl.export.web.runtime import RUNTIME, VERSION
from edgetl.train.finetune import finetune
from tools.checks.browser import browser_outputs
from tools.checks.device_install import create_environment

ARCHITECTURES = ("mobilenet_v3_small", "mobilenet_v2")
"""With and without squeeze-and-excitation, hard swish and hard sigmoid."""

_SCRIPT = """
import json, sys
import numpy as np
model, inputs, names = sys.argv[1], np.load(sys.argv[2]), sys.argv[3:]
{body}
columns = {{name: [np.ravel(row[name]).tolist() for row in rows] for name in names}}
print(json.dumps(columns))
"""
_OPENVINO = """
import openvino
# Without the hint, CPUs with bfloat16 compute fp32 files in it.
compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
rows = []
for image in inputs:
    outputs = compiled(image[None])
    rows.append({name: outputs[name].copy() for name in names})
"""
_OPENCV = """
import cv2
net = cv2.dnn.readNetFromONNX(model{engine})
rows = []
for image in inputs:
    net.setInput(image[None])
    rows.append({{name: net.forward(name) for name in names}})
"""


CLOSE = 0.1
"""Largest difference that counts as a tie: of the two best logits, of a score to the threshold."""


@dataclass(frozen=True)
class CheckedRuntime:
    """A runtime for ONNX files."""

    name: str
    package: str = ""
    """Requirement for pip; empty for the browser."""
    body: str = ""
    """Python code that computes `rows` from `model`, `inputs` and `names`.

    `model` is a path, `inputs` float32 [images, 3, S, S], `names` are output names, and `rows` are
    the outputs of each image by name.
    """
    known_failures: tuple[tuple[str, str], ...] = ()
    """(architecture, variant) pairs that the runtime cannot run, see docs/guide/runtimes.md."""


RUNTIMES = (
    CheckedRuntime("OpenVINO", "openvino", _OPENVINO),
    CheckedRuntime("OpenCV 4", "opencv-python-headless<5", _OPENCV.format(engine="")),
    CheckedRuntime(
        "OpenCV 5, classic engine",
        "opencv-python-headless>=5",
        _OPENCV.format(engine=", engine=cv2.dnn.ENGINE_CLASSIC"),
    ),
    CheckedRuntime(
        "OpenCV 5, new engine",
        "opencv-python-headless>=5",
        _OPENCV.format(engine=", engine=cv2.dnn.ENGINE_NEW"),
        (("mobilenet_v3_small", "int8"),),
    ),
    CheckedRuntime(f"{RUNTIME} {VERSION} in Chromium"),
)


def small_run(folder: Path, architecture: str) -> RunDirectory:
    """Train a small model; an untrained one has too similar logits to compare labels."""
    data = generate_inspection_dataset(folder / "data", train=40, val=16, size=96)
    weights = "builtin" if architecture == "mobilenet_v3_small" else "none"
    return finetune(
        FinetuneConfig(
            data, folder / "run", architecture, weights, image_size=96, epochs=5, finetune_epochs=3
        )
    )


def compare(logits: NDArray[np.float32], expected: NDArray[np.float32]) -> tuple[bool, str]:
    """Return whether the logits [images, classes] predict the expected labels, and a summary.

    int8 kernels of different runtimes round differently. A different label is accepted if the two
    best expected logits differ by less than CLOSE.
    """
    ascending = np.sort(expected, axis=1)
    same = logits.argmax(1) == expected.argmax(1)
    close = ascending[:, -1] - ascending[:, -2] < CLOSE
    difference = np.abs(logits - expected).max()
    summary = f"same top-1 on {same.sum()} of {len(same)}, largest difference {difference:.2g}"
    ties = int((~same & close).sum())
    if ties:
        summary += f", {ties} too close to call"
    return bool((same | close).all()), summary


def compare_unknown_scores(
    scores: NDArray[np.float32], expected: NDArray[np.float32]
) -> tuple[bool, str]:
    """Return whether the same images are unknown, and a summary.

    Images whose expected score is within CLOSE of the threshold count as equal.
    """
    same = (scores > UNKNOWN_THRESHOLD) == (expected > UNKNOWN_THRESHOLD)
    close = np.abs(expected - UNKNOWN_THRESHOLD) < CLOSE
    difference = np.abs(scores - expected).max()
    summary = f"unknown agrees on {same.sum()} of {len(same)}, largest difference {difference:.2g}"
    return bool((same | close).all()), summary


def check(
    bundle: Bundle, variant: VariantRecord, pythons: dict[str, Path], folder: Path
) -> list[str]:
    """Return a line for each runtime; unexpected results begin with FAILED."""
    model = bundle.variant_path(variant)
    onnx.checker.check_model(onnx.load(model), full_check=True)
    golden = bundle.load_golden()
    inputs = np.concatenate(
        [preprocess(image, bundle.preprocessing) for image in golden.load_images()]
    )
    classifier = open_classifier(bundle, variant.name)
    outputs = [classifier.run(image[None]) for image in inputs]
    expected = np.concatenate([output.logits for output in outputs])
    scores = [output.unknown_scores for output in outputs if output.unknown_scores is not None]
    names = ["logits", "unknown_score"] if scores else ["logits"]
    lines = [f"{variant.name}: onnx.checker, full: passed"]
    for runtime in RUNTIMES:
        should_fail = (bundle.model, variant.name) in runtime.known_failures
        try:
            results = run_runtime(runtime, pythons, model, inputs, names, folder)
            passed, summary = compare(results["logits"], expected)
            if scores:
                agrees, score_summary = compare_unknown_scores(
                    results["unknown_score"].ravel(), np.concatenate(scores)
                )
                passed, summary = passed and agrees, f"{summary}; {score_summary}"
        except RuntimeError as error:
            passed = False
            summary = f"cannot run it, {'as expected' if should_fail else error}"
        prefix = "FAILED " if passed == should_fail else ""
        lines.append(f"{prefix}{variant.name}: {runtime.name}: {summary}")
    return lines


def run_runtime(
    runtime: CheckedRuntime,
    pythons: dict[str, Path],
    model: Path,
    inputs: NDArray[np.float32],
    names: list[str],
    folder: Path,
) -> dict[str, NDArray[np.float32]]:
    """Return the outputs of a runtime by name, from its environment or from the browser.

    Args:
        runtime: runtime to use.
        pythons: Python interpreter of each package.
        model: ONNX file.
        inputs: [images, 3, S, S].
        names: names of the outputs.
        folder: for temporary files.

    Raises:
        RuntimeError: the runtime cannot run the file; the message is its last line on stderr.
    """
    if not runtime.package:
        return browser_outputs(model, inputs, names)
    inputs_file = folder / "inputs.npy"
    np.save(inputs_file, inputs)
    script = _SCRIPT.format(body=runtime.body)
    command = [pythons[runtime.package], "-I", "-c", script, model.resolve(), inputs_file, *names]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        raise RuntimeError(lines[-1])
    outputs = json.loads(result.stdout)
    return {name: np.asarray(rows, np.float32) for name, rows in outputs.items()}


def main() -> None:
    runs = [RunDirectory.open(Path(argument)) for argument in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        packages = dict.fromkeys(runtime.package for runtime in RUNTIMES if runtime.package)
        pythons = {
            package: create_environment(folder / f"env{number}", "numpy", package, tested=False)
            for number, package in enumerate(packages)
        }
        runs = runs or [
            small_run(folder / architecture, architecture) for architecture in ARCHITECTURES
        ]
        lines: list[str] = []
        for number, run in enumerate(runs):
            output = folder / f"bundle{number}"
            config = ExportConfig(
                output=output, input="tensor", variants=("fp32", "int8"), search="quick"
            )
            export_run(run, config)
            bundle = open_bundle(output)
            print(f"{bundle.model}, {len(bundle.labels)} classes, {run.path.name}", flush=True)
            for variant in bundle.variants:
                variant_lines = check(bundle, variant, pythons, folder)
                print("\n".join(f"  {line}" for line in variant_lines), flush=True)
                lines += variant_lines
    failed = [line for line in lines if line.startswith("FAILED")]
    sys.exit(f"{len(failed)} of {len(lines)} checks failed" if failed else 0)


if __name__ == "__main__":
    main()
