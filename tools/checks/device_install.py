"""Check the device side in minimal environments.

    python -m tools.checks.device_install [RUN]

- The bundle's client, with only numpy, Pillow and onnxruntime installed, must predict PyTorch's
  label on every validation image of RUN.
- With only `edgetl[cpu]` installed, `predict` and `bench` must work and torch must be absent.

Without RUN, a small model is trained on generated images. `--export FOLDER` only does that and
exports fp32 and int8.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import torch

from edgetl.core.artifacts.run_metrics import read_trained_run
from edgetl.core.artifacts.split import read_split
from edgetl.core.config.export import ExportConfig
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.paths import RunDirectory
from edgetl.demo.images.dataset import generate_inspection_dataset
from edgetl.device.runtime.bundle import open_bundle
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import preprocess
from edgetl.export.exporter import export_run
from edgetl.train.finetune import finetune
from edgetl.train.model.factory import load_run_model

ROOT = Path(__file__).parents[2]


def small_run(folder: Path, variants: tuple[str, ...] = ("fp32",)) -> RunDirectory:
    """Train a small model on generated images and export it."""
    data = generate_inspection_dataset(folder / "data", train=20, val=10, size=96)
    config = FinetuneConfig(
        data, folder / "run", "mobilenet_v2", "none", image_size=64, epochs=3, finetune_epochs=0
    )
    run = finetune(config)
    export_run(run, ExportConfig(variants=variants, search="quick"))
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
    client = [str(python), "-I", str(run.bundle / "predict.py"), *expected]
    lines = subprocess.run(client, capture_output=True, text=True, check=True).stdout.splitlines()
    labels = {}
    for line in lines:
        path, label, _, *confidence = line.split("\t")
        # An image labeled unknown is followed by its unknown score and closest label.
        labels[path] = confidence[1] if confidence else label
    different = sorted(path for path in expected if labels.get(path) != expected[path])
    if different:
        counts = f"{len(different)} of {len(expected)}"
        sys.exit(f"{counts} labels differ from PyTorch's: {different[:5]}.")
    return len(expected)


def check_commands(run: RunDirectory, python: Path, scratch: Path) -> str:
    """Run `predict` and `bench` with only edgetl[cpu] installed.

    Returns:
        A line that describes the result of the bench.

    Raises:
        SystemExit: torch is installed, or images are missing in the output.
    """
    if subprocess.run([python, "-c", "import torch"], capture_output=True).returncode == 0:
        sys.exit("torch must not be installed with edgetl[cpu] alone.")
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


def main() -> None:
    if sys.argv[1:2] == ["--export"]:
        small_run(Path(sys.argv[2]), ("fp32", "int8"))
        return
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        arguments = sys.argv[1:]
        run = RunDirectory.open(Path(arguments[0]).resolve()) if arguments else small_run(scratch)
        python = create_environment(scratch / "client", "numpy", "pillow", "onnxruntime")
        images = check_client(run, python)
        print(
            f"predict.py: all {images} labels equal PyTorch's, with numpy, Pillow and onnxruntime"
        )
        python = create_environment(scratch / "device", f"{ROOT}[cpu]")
        bench = check_commands(run, python, scratch)
        print(f"edgetl[cpu]: predict and bench work without torch ({bench})")


if __name__ == "__main__":
    main()
