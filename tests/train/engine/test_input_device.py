"""Choice of the input device, with a simulated GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from edgetl.core.artifacts.run_metrics import InputDeviceReport
from edgetl.core.artifacts.split import SplitEntry
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import DecodeError
from edgetl.core.preprocessing import Preprocessing
from edgetl.train.common.distributed import SINGLE_PROCESS
from edgetl.train.data.augmentation import Augmentation
from edgetl.train.data.decoded_cache import DecodedImageCache
from edgetl.train.data.gpu_images import DeviceImageCache
from edgetl.train.data.gpu_loader import DeviceLoader
from edgetl.train.data.jpeg import BatchDecoder
from edgetl.train.data.loader import ImageDataset, ImageLoader, ViewKey
from edgetl.train.engine import input_device, phase_builder
from edgetl.train.engine.input_device import choose_loader
from edgetl.train.finetune import finetune
from tests.conftest import ARCHITECTURE
from tests.train.data.test_gpu_loader import failing_decoder
from tests.train.data.test_jpeg import decode_on_cpu, make_image

SIDE, BATCH = 32, 4
CPU = torch.device("cpu")


class DelayedLoader:
    """CPU loader with a delay for each batch."""

    def __init__(self, loader: ImageLoader, seconds: float) -> None:
        self.images = loader.images
        self._loader = loader
        self._seconds = seconds

    def __call__(self, batches: Sequence[Sequence[ViewKey]]) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self._loader(batches):
            time.sleep(self._seconds)
            yield batch


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    files = [tmp_path / f"{number}.jpg" for number in range(16)]
    for number, file in enumerate(files):
        make_image(60, 90 + number).save(file)
    return files


def make_context(
    paths: list[Path], seconds: float = 0.0, strength: Any = "light", **options: Any
) -> Any:
    """Return the parts of a run context on a GPU that `choose_loader` uses."""
    preprocessing = Preprocessing.for_image_size(SIDE)
    augmentation = Augmentation(strength, preprocessing, 0)
    entries = [SplitEntry(path, "a", "train") for path in paths]
    loader = ImageLoader(
        ImageDataset(entries, ["a"], augmentation, preprocessing, DecodedImageCache(0, 64)), 0
    )
    notes: list[str] = []
    return SimpleNamespace(
        config=FinetuneConfig(Path("data"), augment=strength, **options),
        batch_size=BATCH,
        loader=DelayedLoader(loader, seconds),
        train_indices=range(len(paths)),
        preprocessing=preprocessing,
        compute_config=SimpleNamespace(
            device=torch.device("cuda"), device_name="a GPU", synchronize=lambda: None
        ),
        feature_key={
            "images": {"train": [str(path) for path in paths]},
            "augmentation": augmentation.name,
            "versions": {},
        },
        cache_budget_bytes=0,
        progress=SimpleNamespace(note=notes.append, notes=notes),
        processes=SINGLE_PROCESS,
    )


@pytest.fixture
def decoders(monkeypatch: pytest.MonkeyPatch) -> list[BatchDecoder]:
    """Build the device's loader for the CPU, and return the decoders that it was built with."""
    used_decoders: list[BatchDecoder] = []

    def build(context: Any, decoder: BatchDecoder) -> tuple[DeviceLoader, DeviceImageCache]:
        used_decoders.append(decoder)
        images = DeviceImageCache(context.loader.images.decoded_cache, CPU, 10**9, decoder)
        return DeviceLoader(context.loader, images, SIDE, CPU), images

    monkeypatch.setattr(input_device, "_build_device_loader", build)
    return used_decoders


def test_faster_path_is_chosen_and_reported(
    paths: list[Path], decoders: list[BatchDecoder]
) -> None:
    slow_cpu = make_context(paths, 0.3)
    loader, choice = choose_loader(slow_cpu, decoder=decode_on_cpu)
    assert isinstance(loader, DeviceLoader)
    assert choice is not None
    assert choice.device == "cuda"
    rates = choice.images_per_second
    assert rates is not None
    # Four images take 0.3 s or a little more.
    assert 5 < rates["cpu"] < BATCH / 0.3
    assert rates["cuda"] > rates["cpu"]
    [note] = slow_cpu.progress.notes
    assert note.startswith("Training images are prepared on the GPU: measured ")


def test_cpu_is_chosen_when_device_is_slow(
    paths: list[Path], decoders: list[BatchDecoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = DeviceLoader._make_views

    def slow(self: DeviceLoader, *arguments: Any) -> tuple[Tensor, Tensor]:
        time.sleep(0.3)
        return original(self, *arguments)

    monkeypatch.setattr(DeviceLoader, "_make_views", slow)
    context = make_context(paths)
    loader, choice = choose_loader(context, decoder=decode_on_cpu)
    assert loader is context.loader
    assert choice is not None
    assert choice.device == "cpu"
    assert "on the CPU: measured" in context.progress.notes[0]


def test_measurement_is_cached_for_same_images(
    paths: list[Path], decoders: list[BatchDecoder]
) -> None:
    first = choose_loader(make_context(paths, 0.05), decoder=decode_on_cpu)[1]
    again = choose_loader(make_context(paths), decoder=failing_decoder)[1]
    assert again == first
    assert choose_loader(make_context(paths[:-1]), decoder=decode_on_cpu)[1] != first


def test_rate_includes_decoding_of_uncached_images(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = 0.1

    def slow_decoder(encoded: list[Tensor], device: torch.device) -> list[Tensor]:
        time.sleep(seconds)
        return decode_on_cpu(encoded, device)

    def rate(budget: int) -> float:
        context = make_context(paths)
        images = DeviceImageCache(context.loader.images.decoded_cache, CPU, budget, slow_decoder)
        measured = input_device._measure_rates(
            context, DeviceLoader(context.loader, images, SIDE, CPU), images
        )
        return measured.images_per_second["cuda"]

    assert rate(0) < BATCH / seconds < rate(10**9)


@pytest.mark.parametrize("recorded", [None, "cpu", "cuda"])
def test_requested_or_recorded_choice_is_not_measured(
    recorded: Any, paths: list[Path], decoders: list[BatchDecoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_device, "cached_measurement", lambda *_: pytest.fail("measured"))
    for requested in ("cpu", "cuda"):
        context = make_context(paths, input_device=requested)
        loader, choice = choose_loader(context, recorded, decode_on_cpu)
        assert choice == InputDeviceReport(recorded or requested)
        assert isinstance(loader, DeviceLoader) is (choice.device == "cuda")
        assert context.progress.notes == []


def test_cpu_is_chosen_when_decoder_fails(paths: list[Path], decoders: list[BatchDecoder]) -> None:
    context = make_context(paths, 0.3)
    loader, choice = choose_loader(context, decoder=failing_decoder)
    assert loader is context.loader
    assert choice is not None
    assert choice.device == "cpu"
    assert context.progress.notes == [
        "Training images are prepared on the CPU "
        "(the GPU cannot decode JPEG files: torchvision not compiled with nvJPEG support)."
    ]


def test_failure_is_not_cached(paths: list[Path], decoders: list[BatchDecoder]) -> None:
    _, failed = choose_loader(make_context(paths, 0.1), decoder=failing_decoder)
    assert failed is not None
    assert failed.refused
    _, choice = choose_loader(make_context(paths, 0.1), decoder=decode_on_cpu)
    assert choice is not None
    assert choice.device == "cuda"


def test_cpu_is_chosen_when_device_fails(
    paths: list[Path], decoders: list[BatchDecoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    monkeypatch.setattr(DeviceLoader, "_make_views", fail)
    context = make_context(paths, 0.3)
    loader, _ = choose_loader(context, decoder=decode_on_cpu)
    assert loader is context.loader
    assert context.progress.notes == [
        "Training images are prepared on the CPU (the GPU path failed: CUDA out of memory. Tried to allocate 2 GiB.)."
    ]


def test_invalid_image_raises_decode_error(paths: list[Path], decoders: list[BatchDecoder]) -> None:
    paths[0].write_bytes(b"no image")
    with pytest.raises(DecodeError, match=r"0\.jpg"):
        choose_loader(make_context(paths), decoder=decode_on_cpu)


@pytest.mark.parametrize("case", ["cpu", "none"])
def test_choice_is_empty_without_gpu_or_augmentation(
    case: str, paths: list[Path], decoders: list[BatchDecoder]
) -> None:
    context = make_context(paths, strength="none" if case == "none" else "light")
    if case == "cpu":
        context.compute_config.device = CPU
    loader, choice = choose_loader(context, decoder=failing_decoder)
    assert loader is context.loader
    assert choice is None
    assert decoders == []
    assert context.progress.notes == []


def test_training_is_equal_on_both_paths(
    tmp_path: Path, parts: Path, random_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = FinetuneConfig(
        parts, tmp_path / "cpu", ARCHITECTURE, str(random_weights), SIDE,
        device="cpu", precision="fp32", workers=0, epochs=2, finetune_epochs=1, cache_budget=0,
        dropout=0.0,
    )  # fmt: skip
    expected = finetune(config)
    batch_sizes: list[int] = []

    def decoder(encoded: list[Tensor], device: torch.device) -> list[Tensor]:
        batch_sizes.append(len(encoded))
        return decode_on_cpu(encoded, device)

    def choose(context: Any, recorded: Any) -> tuple[DeviceLoader, InputDeviceReport]:
        images = DeviceImageCache(context.loader.images.decoded_cache, CPU, 10**9, decoder)
        loader = DeviceLoader(context.loader, images, context.preprocessing.crop, CPU)
        return loader, InputDeviceReport("cuda")

    monkeypatch.setattr(phase_builder, "choose_loader", choose)
    run = finetune(replace(config, output=tmp_path / "device"))
    assert sum(batch_sizes) == 40, "every training image once in three epochs"

    def losses(history: Path) -> list[float]:
        import json

        return [json.loads(line)["train_loss"] for line in history.read_text().splitlines()]

    assert losses(run.history) == pytest.approx(losses(expected.history), rel=0.02)
    assert '"input": {' in run.metrics.read_text()
    assert '"input": {' not in expected.metrics.read_text()


def test_deterministic_uses_cpu_without_measurement(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_device, "cached_measurement", lambda *_: pytest.fail("measured"))
    _, choice = choose_loader(make_context(paths, deterministic=True), decoder=decode_on_cpu)
    assert choice == InputDeviceReport("cpu")
