"""Fixtures that every test may use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import forking

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# A test run may have a terminal's width, or that of the process that distributes it; the program's own decides.
os.environ.pop("COLUMNS", None)

# Processes that a shell starts in the background ignore Ctrl-C, and those of nohup SIGHUP; so would those that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

ROOT = Path(__file__).parents[1]
ARCHITECTURE, IMAGE_SIZE = "mobilenet_v3_small", 64
"""Small enough to train and export in seconds."""


LONG = (
    "experiment/test_compare", "train/test_resume", "cli/test_export", "train/common/test_distributed", "train/test_finetune", "e2e/test_main_job",
    "train/test_pytorch_backend", "cli/test_demo", "device/bench/test_runner", "device/bench/test_sweep", "device/loadgen/test_loadgen",
    "export/quantize/test_quantize", "export/web/test_export",
    "export/test_exporter", "train/engine/test_phase_builder", "cli/test_bench", "cli/test_finetune", "tools/pretraining/test_pretrain",
)  # fmt: skip
"""Files that take longest, the longest first: one that begins last is waited for by a worker that has nothing left to do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {ROOT / "tests" / f"{name}.py": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(LONG)))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What tests cache is neither found in nor left for anything else; processes that they start inherit it."""
    os.environ["EDGETL_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photos and weights beside the checkout; in CI it must be there."""
    folder = Path(os.environ.get("EDGETL_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"in CI the real photos must be at {folder}")
        pytest.skip(f"no real photos at {folder}")
    return folder


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of ARCHITECTURE: random, with statistics that keep the signal alive down to the logits, as training would."""
    import torch
    import torchvision
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = torchvision.models.get_model(ARCHITECTURE)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # a plain average, which a few passes fill
    with torch.no_grad():
        for _ in range(4):
            network(torch.randn(8, 3, IMAGE_SIZE, IMAGE_SIZE))
        network.classifier[-1].weight.mul_(
            0.2
        )  # random features answer to single grey levels as trained ones do not
    path = tmp_path_factory.mktemp("weights") / f"{ARCHITECTURE}.safetensors"
    save_file(network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def stock_bundle(tmp_path_factory: pytest.TempPathFactory, random_weights: Path) -> Path:
    """A bundle of a stock architecture with 1000 classes. Read only: copy it before changing it."""
    from edgetl.core.config.export import ExportConfig
    from edgetl.export.exporter import export_architecture

    output = tmp_path_factory.mktemp("stock") / "bundle"
    export_architecture(
        ARCHITECTURE, str(random_weights), ExportConfig(output=output), image_size=IMAGE_SIZE
    )
    return output


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set of five classes with train/ and val/. Read only."""
    from edgetl.demo.images.dataset import generate_inspection_dataset

    return generate_inspection_dataset(
        tmp_path_factory.mktemp("data") / "parts", train=8, val=4, size=80
    )


@pytest.fixture(scope="session")
def edgetl() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the program in a process of its own, as a user would, and return what it printed and its exit status."""

    def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **dict(options.pop("env", {}))}  # type: ignore[call-overload]
        command = [sys.executable, "-m", "edgetl", *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=250, **options
        )  # type: ignore[call-overload,no-any-return]

    return run


@pytest.fixture(scope="session")
def forked(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As `edgetl`, in a process of its own too, for what needs PyTorch and proves nothing about how the program starts."""
    return lambda *arguments: forking.program(
        [*map(str, arguments)], ROOT, tmp_path_factory.mktemp("said"), 250
    )


@pytest.fixture
def make_images(tmp_path: Path) -> Callable[..., Path]:
    """make_images("data", ["red", "blue"], count=4, size=48): folders of PNGs, all different, whose colour tells the class."""
    import numpy as np
    from PIL import Image

    def make(name: str, classes: list[str], count: int = 6, size: int = 48, seed: int = 0) -> Path:
        generator = np.random.default_rng(seed)
        for index, label in enumerate(classes):
            folder = tmp_path / name / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 60, (size, size + number % 3, 3))
                pixels[:, :, index % 3] += 60 * (1 + index // 3)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        return tmp_path / name

    return make
