"""Check the device side in minimal environments.

    python -m tools.checks.device_install [RUN|BUNDLE]

- The bundle's client, with only numpy, Pillow and onnxruntime installed, must predict PyTorch's
  label on every validation image of RUN.
- With only `edgetl[cpu]` installed, `predict` and `bench` must work and torch must be absent.
- For each other runtime that the bundle has variants for, with only its extra installed: `verify`,
  `predict`, `bench` and the runtime's client must work without torch, onnx and onnxruntime, and
  give the exporting machine's labels for the golden images.

Without RUN, a small model is trained on generated images and exported in the formats of the
runtimes that are installed here. `--export FOLDER` only does that. Of a BUNDLE, only the runtimes
are checked.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from edgetl.core.artifacts.run_metrics import read_trained_run
from edgetl.core.artifacts.split import read_split
from edgetl.core.config.export import ExportConfig
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.paths import RunDirectory, StrPath
from edgetl.core.registry import FORMATS
from edgetl.core.runtimes import ONNXRUNTIME, is_installed
from edgetl.demo.images.dataset import generate_inspection_dataset
from edgetl.device.runtime.bundle import Bundle, open_bundle
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import preprocess
from edgetl.export.exporter import export_run
from edgetl.train.finetune import finetune
from edgetl.train.model.factory import load_run_model
from tools.checks.bundle_runtimes import BundleRuntime, list_bundle_runtimes

ROOT = Path(__file__).parents[2]


def small_run(folder: Path, variants: tuple[str, ...] = ("fp32",)) -> RunDirectory:
    """Train a small model on generated images and export it in all formats possible here."""
    data = generate_inspection_dataset(folder / "data", train=20, val=10, size=96)
    config = FinetuneConfig(
        data,
        folder / "run",
        "mobilenet_v3_small",
        "builtin",
        image_size=64,
        epochs=3,
        finetune_epochs=0,
    )
    run = finetune(config)
    formats = tuple(name for name in FORMATS if is_installed(name))
    export_run(run, ExportConfig(variants=variants, formats=formats, search="quick"))
    return run


def create_environment(folder: Path, *packages: str, tested: bool = True) -> Path:
    """Create a virtual environment with `packages` and return its Python.

    Args:
        folder: where to create it.
        packages: requirements for pip.
        tested: install the tested versions instead of the newest.
    """
    venv.create(folder, with_pip=True)
    python = folder / "bin/python"
    versions = ["-c", str(ROOT / "constraints.txt")] if tested else []
    subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", *versions, *packages], check=True
    )
    return python


def pytorch_labels(run: RunDirectory) -> dict[str, str]:
    """Return PyTorch's label for the path of each validation image.

    Uses the training images if there are no validation images.
    """
    trained = read_trained_run(run)
    run_model = load_run_model(trained)
    entries = read_split(run, trained.configuration)
    val_entries = [entry for entry in entries if entry.split == "val"]
    labels = {}
    with torch.inference_mode():
        for entry in val_entries or entries:
            pixels = preprocess(load_image(entry.path), run_model.preprocessing)
            logits = run_model.model(torch.from_numpy(pixels))
            labels[str(entry.path)] = run_model.labels[int(logits.argmax())]
    return labels


def check_client(run: RunDirectory, python: Path) -> int:
    """Run the bundle's predict.py on every image and return the number of images.

    Raises:
        SystemExit: a label differs from PyTorch's.
    """
    expected = pytorch_labels(run)
    labels = run_client([python, "-I", run.bundle / "predict.py", *expected])
    check_labels(labels, expected, "predict.py")
    return len(expected)


def run_client(command: Sequence[StrPath]) -> dict[str, str]:
    """Run a client of a bundle and return the closest label by path."""
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    labels = {}
    for line in output.splitlines():
        path, label, _, *confidence = line.split("\t")
        # An image labeled unknown is followed by its unknown score and closest label.
        labels[path] = confidence[1] if confidence else label
    return labels


def check_labels(labels: Mapping[str, str], expected: Mapping[str, str], program: str) -> None:
    """Compare labels by path.

    Raises:
        SystemExit: some differ.
    """
    different = sorted(path for path in expected if labels.get(path) != expected[path])
    if different:
        counts = f"{len(different)} of {len(expected)}"
        sys.exit(f"{program}: {counts} labels differ from PyTorch's: {different[:5]}.")


def check_commands(run: RunDirectory, python: Path, scratch: Path) -> str:
    """Run `predict` and `bench` with only edgetl[cpu] installed.

    Returns:
        A line that describes the result of the bench.

    Raises:
        SystemExit: torch is installed, or images are missing in the output.
    """
    check_absence(python, "cpu", "torch")
    golden = sorted((run.bundle / "golden").glob("[0-9]*"))
    command = [python, "-m", "edgetl"]
    options = {"capture_output": True, "text": True, "check": True, "cwd": scratch}
    predictions = subprocess.run(
        [*command, "predict", run.bundle, *golden, "--json"], **options
    ).stdout  # type: ignore[call-overload]
    images = json.loads(predictions)["images"]
    if len(images) != len(golden):
        sys.exit("Images are missing in the output of `edgetl predict`.")
    has_detector = open_bundle(run.bundle).select_variant(None).unknown is not None
    if has_detector and any(image["unknown_score"] is None for image in images):
        sys.exit("Unknown scores are missing in the output of `edgetl predict`.")
    result = json.loads(
        subprocess.run(  # type: ignore[call-overload]
            [*command, "bench", run.bundle, "--rounds", "2", "--json"], **options
        ).stdout
    )
    row = next(row for row in result["rows"] if row["scope"] == "model")
    case = f"{row['runtime']} {row['variant']}, model scope"
    return f"{case}: p50 {row['p50_ms']:.2f} ms on {row['threads']} threads"


def check_absence(python: Path, extra: str, *modules: str) -> None:
    """Check that an extra does not install modules.

    Raises:
        SystemExit: it does.
    """
    for module in modules:
        if subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode == 0:
            sys.exit(f"{module} must not be installed with edgetl[{extra}] alone.")


def golden_labels(bundle: Bundle) -> dict[str, str]:
    """Return PyTorch's label for the path of each golden image."""
    golden = bundle.load_golden()
    best = golden.logits.argmax(1)
    return {str(path): bundle.labels[index] for path, index in zip(golden.files, best, strict=True)}


def check_runtime(bundle: Bundle, runtime: BundleRuntime, python: Path, scratch: Path) -> str:
    """Run the device commands and the client of a runtime with only its extra installed.

    Returns:
        A line that describes the rows of the bench.

    Raises:
        SystemExit: another package is installed, labels differ, or a row of the bench failed.
    """
    # ExecuTorch's package requires torch.
    trainers = () if runtime.name == "executorch" else ("torch",)
    check_absence(python, runtime.extra, *trainers, "onnx", ONNXRUNTIME)
    expected = golden_labels(bundle)
    folder = bundle.directory.path

    # The installed package, not the checkout.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run_edgetl(*arguments: StrPath) -> dict[str, Any]:
        command = [python, "-m", "edgetl", *arguments, "--json"]
        process = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, cwd=scratch, env=environment
        )
        if process.returncode != 0:
            sys.exit(f"`edgetl {arguments[0]}` failed with only edgetl[{runtime.extra}].")
        output: dict[str, Any] = json.loads(process.stdout)
        return output

    run_edgetl("verify", folder)
    options = ("--runtime", runtime.name, "--variant", runtime.fp32_variant)
    images = run_edgetl("predict", folder, *expected, *options)["images"]
    labels = {image["path"]: image["top"][0]["label"] for image in images}
    check_labels(labels, expected, f"predict {' '.join(options)}")
    client = folder / f"predict_{runtime.name}.py"
    labels = run_client([python, client, runtime.fp32_variant, *expected])
    check_labels(labels, expected, client.name)
    result = run_edgetl("bench", folder, "--runtime", runtime.name, "--rounds", "2")
    failed = [row["variant"] for row in result["rows"] if not row["gate"]["passed"]]
    if failed:
        sys.exit(f"Rows of `edgetl bench` failed: {', '.join(failed)}.")
    return ", ".join(f"{row['variant']} {row['p50_ms']:.2f} ms" for row in result["rows"])


def check_runtimes(bundle: Bundle, scratch: Path) -> None:
    """Check every runtime of a bundle except ONNX Runtime, each in its own environment."""
    for runtime in list_bundle_runtimes(bundle):
        if runtime.name == ONNXRUNTIME:
            continue
        python = create_environment(scratch / runtime.name, f"{ROOT}[{runtime.extra}]")
        rows = check_runtime(bundle, runtime, python, scratch)
        print(
            f"edgetl[{runtime.extra}]: verify, predict, bench and the client work without torch "
            f"and onnxruntime, with PyTorch's labels ({rows})",
            flush=True,
        )


def main() -> None:
    if sys.argv[1:2] == ["--export"]:
        small_run(Path(sys.argv[2]), ("fp32", "int8"))
        return
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        arguments = sys.argv[1:]
        if arguments and Path(arguments[0], "bundle.json").is_file():
            check_runtimes(open_bundle(Path(arguments[0]).resolve()), scratch)
            return
        run = RunDirectory.open(Path(arguments[0]).resolve()) if arguments else small_run(scratch)
        python = create_environment(scratch / "client", "numpy", "pillow", "onnxruntime")
        images = check_client(run, python)
        print(
            f"predict.py: all {images} labels equal PyTorch's, with numpy, Pillow and onnxruntime"
        )
        python = create_environment(scratch / "device", f"{ROOT}[cpu]")
        bench = check_commands(run, python, scratch)
        print(f"edgetl[cpu]: predict and bench work without torch ({bench})")
        check_runtimes(open_bundle(run.bundle), scratch)


if __name__ == "__main__":
    main()
