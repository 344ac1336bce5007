"""Prove the device side in environments that hold nothing else: python -m tools.checks.device_install [RUN].

- the bundle's own client, with numpy, Pillow and onnxruntime alone, must give PyTorch's label on every validation image of RUN;
- with `edgetl[cpu]` alone, `predict` and `bench` of the bundle must work, and torch must not be there.

Without RUN a small one is trained on generated pictures; `--export FOLDER` does no more than that, with int8 beside fp32.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import torch

from edgetl.core.config.export import ExportConfig
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.paths import RunDirectory
from edgetl.demo.images.dataset import generate_inspection_dataset
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import preprocess
from edgetl.export.exporter import export_run
from edgetl.train.data.splits import read_split
from edgetl.train.finetune import finetune
from edgetl.train.model.factory import load_run_model

ROOT = Path(__file__).parents[2]


def small_run(folder: Path, variants: tuple[str, ...] = ("fp32",)) -> RunDirectory:
    data = generate_inspection_dataset(folder / "data", train=20, val=10, size=96)
    config = FinetuneConfig(
        data, folder / "run", "mobilenet_v2", "none", image_size=64, epochs=3, finetune_epochs=0
    )
    run = finetune(config)
    export_run(run, ExportConfig(variants=variants, search="quick"))
    return run


def environment(folder: Path, *packages: str, tested: bool = True) -> Path:
    """A fresh virtual environment with `packages`, in the tested versions or the newest; returns its Python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin/python"
    versions = ["-c", str(ROOT / "constraints.txt")] if tested else []
    subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", *versions, *packages], check=True
    )
    return python


def pytorch_labels(run: RunDirectory) -> dict[str, str]:
    """Path of each validation image (training image where there are none) to PyTorch's label."""
    model, rows = load_run_model(run), read_split(run)
    chosen = [row for row in rows if row.split == "val"] or rows
    labels = {}
    with torch.inference_mode():
        for row in chosen:
            logits = model.model(
                torch.from_numpy(preprocess(load_image(row.path), model.preprocessing))
            )
            labels[str(row.path)] = model.labels[int(logits.argmax())]
    return labels


def check_client(run: RunDirectory, python: Path) -> int:
    """Run the bundle's predict.py on every image; returns how many labels equal PyTorch's, all of them."""
    expected = pytorch_labels(run)
    client = [str(python), "-I", str(run.bundle / "predict.py"), *expected]
    lines = subprocess.run(client, capture_output=True, text=True, check=True).stdout.splitlines()
    answers = {path: label for path, label, _ in (line.split("\t") for line in lines)}
    different = {path for path in expected if answers.get(path) != expected[path]}
    if different:
        sys.exit(
            f"{len(different)} of {len(expected)} labels differ from PyTorch's: {sorted(different)[:5]}"
        )
    return len(expected)


def check_commands(run: RunDirectory, python: Path, scratch: Path) -> str:
    """Use the bundle where only edgetl[cpu] is installed; returns a line about the result."""
    if subprocess.run([python, "-c", "import torch"], capture_output=True).returncode == 0:
        sys.exit("torch is installed where only edgetl[cpu] was asked for")
    golden = sorted((run.bundle / "golden").glob("[0-9]*"))
    command = [python, "-m", "edgetl"]
    options = {"capture_output": True, "text": True, "check": True, "cwd": scratch}
    predictions = subprocess.run(
        [*command, "predict", run.bundle, *golden, "--json"], **options
    ).stdout  # type: ignore[call-overload]
    if len(json.loads(predictions)["images"]) != len(golden):
        sys.exit("predict left images out")
    result = json.loads(
        subprocess.run(  # type: ignore[call-overload]
            [*command, "bench", run.bundle, "--rounds", "2", "--json"], **options
        ).stdout
    )
    row = next(row for row in result["rows"] if row["scope"] == "model")
    return f"{row['runtime']} {row['variant']}, model scope: p50 {row['p50_ms']:.2f} ms on {row['threads']} threads"


def main() -> None:
    if sys.argv[1:2] == ["--export"]:
        small_run(Path(sys.argv[2]), ("fp32", "int8"))
        return
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        run = (
            RunDirectory.open(Path(sys.argv[1]).resolve())
            if len(sys.argv) > 1
            else small_run(scratch)
        )
        images = check_client(
            run, environment(scratch / "client", "numpy", "pillow", "onnxruntime")
        )
        print(
            f"predict.py gives PyTorch's label on all {images} images with numpy, Pillow and onnxruntime alone"
        )
        bench = check_commands(run, environment(scratch / "device", f"{ROOT}[cpu]"), scratch)
        print(f"edgetl[cpu]: predict and bench work without torch ({bench})")


if __name__ == "__main__":
    main()
