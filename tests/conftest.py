"""Fixtures for all tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import forkserver
from tests.helpers.shared_files import build_once

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# Tests expect the default width, not that of the terminal or of the process that distributes tests.
os.environ.pop("COLUMNS", None)

# Background processes of a shell ignore SIGINT, and those of nohup SIGHUP. The processes that tests
# interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Files need not reach the disk: tests kill processes, but the machine keeps running.
os.fsync = lambda descriptor: None

ROOT = Path(__file__).parents[1]
ARCHITECTURE, IMAGE_SIZE = "mobilenet_v3_small", 64
"""Small enough to train and export in seconds."""


LONG = (
    "cli/test_export", "export/web/test_export", "train/test_finetune", "device/bench/test_runner",
    "train/test_resume", "e2e/test_main_job", "device/bench/test_sweep", "fleet/test_bench",
    "train/engine/test_phase_builder", "export/test_exporter", "device/loadgen/test_loadgen",
    "export/quantize/test_quantize", "report/bench/test_page", "train/common/test_run_choices",
    "device/bench/test_worker_process", "experiment/test_compare", "train/test_pytorch_backend",
    "cli/test_console", "cli/test_bench", "train/test_device_placement",
)  # fmt: skip
"""Slowest test files in descending order. They run first, so that workers finish together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {ROOT / "tests" / f"{name}.py": rank for rank, name in enumerate(LONG)}
    items.sort(key=lambda item: ranks.get(item.path, len(LONG)))


@pytest.fixture(scope="session", autouse=True)
def _separate_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Use a temporary cache folder, also in processes that the tests start."""
    os.environ["EDGETL_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real photos and weights beside the checkout. Without it, tests skip (in CI: fail)."""
    folder = Path(os.environ.get("EDGETL_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"real photos not found at {folder}, but required in CI")
        pytest.skip(f"real photos not found at {folder}")
    return folder


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights file of ARCHITECTURE with random weights and realistic batch-norm statistics.

    Without the statistics the signal would vanish before the logits.
    """

    def build(folder: Path) -> None:
        import torch
        import torchvision
        from safetensors.torch import save_file

        torch.manual_seed(0)
        model = torchvision.models.get_model(ARCHITECTURE)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # cumulative average: a few passes are enough
        with torch.no_grad():
            for _ in range(4):
                model(torch.randn(8, 3, IMAGE_SIZE, IMAGE_SIZE))
            # Random features react to single grey levels, unlike trained ones.
            model.classifier[-1].weight.mul_(0.2)
        save_file(model.state_dict(), folder / f"{ARCHITECTURE}.safetensors")

    return build_once(tmp_path_factory, "random-weights", build) / f"{ARCHITECTURE}.safetensors"


@pytest.fixture(scope="session")
def stock_bundle(tmp_path_factory: pytest.TempPathFactory, random_weights: Path) -> Path:
    """Bundle of a stock architecture with 1000 classes. Read-only: copy it before changing it."""

    def build(folder: Path) -> None:
        from tests.helpers.graphs import quick_export

        with pytest.MonkeyPatch.context() as patch:
            quick_export(tmp_path_factory, random_weights, patch)(folder / "bundle")

    return build_once(tmp_path_factory, "stock", build) / "bundle"


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small data set of five classes with train/ and val/. Read-only."""

    def build(folder: Path) -> None:
        from edgetl.demo.images.dataset import generate_inspection_dataset

        generate_inspection_dataset(folder / "parts", train=8, val=4, size=80)

    return build_once(tmp_path_factory, "data", build) / "parts"


@pytest.fixture(scope="session")
def edgetl() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Function that runs the program in a new process and returns its output and exit status."""

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
    """Function like `edgetl`, faster for commands that need PyTorch: the process is forked."""
    return lambda *arguments: forkserver.program(
        [*map(str, arguments)], ROOT, tmp_path_factory.mktemp("output"), 250
    )


@pytest.fixture
def make_images(tmp_path: Path) -> Callable[..., Path]:
    """Function that writes folders of distinct PNGs whose color depends on the class.

    Example: make_images("data", ["red", "blue"], count=4, size=48)
    """
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
