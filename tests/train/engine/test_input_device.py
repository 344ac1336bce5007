"""The faster of two paths is taken and told; a GPU that cannot decode leads to the CPU with one note."""

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
from edgetl.train.data.splits import SplitEntry
from edgetl.train.engine import input_device, phase_builder
from edgetl.train.engine.input_device import choose_loader
from edgetl.train.finetune import finetune
from tests.conftest import ARCHITECTURE
from tests.train.data.test_gpu_loader import broken
from tests.train.data.test_jpeg import decode_on_cpu, picture

SIDE, BATCH = 32, 4
CPU = torch.device("cpu")


class DelayedLoader:
    """The loader on the CPU, slowed down."""

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
    found = []
    for number in range(16):
        found.append(tmp_path / f"{number}.jpg")
        picture(60, 90 + number).save(found[-1])
    return found


def materials(
    paths: list[Path], seconds: float = 0.0, strength: Any = "light", **options: Any
) -> Any:
    """Materials of a run on a GPU, with whatever the choice looks at."""
    contract = Preprocessing.for_image_size(SIDE)
    augmentation = Augmentation(strength, contract, 0)
    rows = [SplitEntry(path, "a", "train") for path in paths]
    loader = ImageLoader(
        ImageDataset(rows, ["a"], augmentation, contract, DecodedImageCache(0, 64)), 0
    )
    notes: list[str] = []
    return SimpleNamespace(
        config=FinetuneConfig(Path("data"), augment=strength, **options),
        batch_size=BATCH,
        loader=DelayedLoader(loader, seconds),
        train_indices=range(len(paths)),
        preprocessing=contract,
        compute_config=SimpleNamespace(device=torch.device("cuda"), device_name="a GPU", synchronize=lambda: None),
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
def built(monkeypatch: pytest.MonkeyPatch) -> list[BatchDecoder]:
    """The device's loader is built for the CPU, so that it runs here; the decoders that were used for it."""
    decoders: list[BatchDecoder] = []

    def build(given: Any, decoder: BatchDecoder) -> tuple[DeviceLoader, DeviceImageCache]:
        decoders.append(decoder)
        images = DeviceImageCache(given.loader.images.decoded_cache, CPU, 10**9, decoder)
        return DeviceLoader(given.loader, images, SIDE, CPU), images

    monkeypatch.setattr(input_device, "_build_device_loader", build)
    return decoders


def test_the_faster_path_is_taken_and_told(paths: list[Path], built: list[BatchDecoder]) -> None:
    slow_cpu = materials(paths, 0.3)
    loader, choice = choose_loader(slow_cpu, decoder=decode_on_cpu)
    assert isinstance(loader, DeviceLoader)
    assert choice["device"] == "cuda"
    # Four images every 0.3 s, or a little more.
    assert 5 < choice["images_per_second"]["cpu"] < BATCH / 0.3
    assert choice["images_per_second"]["cuda"] > choice["images_per_second"]["cpu"]
    [note] = slow_cpu.progress.notes
    assert note.startswith("Training images are prepared on the GPU: measured ")


def test_a_slow_device_leads_to_the_cpu(
    paths: list[Path], built: list[BatchDecoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = DeviceLoader._make_views

    def slow(self: DeviceLoader, *given: Any) -> tuple[Tensor, Tensor]:
        time.sleep(0.3)
        return original(self, *given)

    monkeypatch.setattr(DeviceLoader, "_make_views", slow)
    given = materials(paths)
    loader, choice = choose_loader(given, decoder=decode_on_cpu)
    assert loader is given.loader
    assert choice["device"] == "cpu"
    assert "on the CPU: measured" in given.progress.notes[0]


def test_a_measurement_is_made_once_for_the_same_images(
    paths: list[Path], built: list[BatchDecoder]
) -> None:
    first = choose_loader(materials(paths, 0.05), decoder=decode_on_cpu)[1]
    again = choose_loader(materials(paths), decoder=broken)[1]
    assert again == first
    assert choose_loader(materials(paths[:-1]), decoder=decode_on_cpu)[1] != first


def test_what_does_not_fit_counts_as_decoded_anew(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = 0.1

    def slow_decoder(encoded: list[Tensor], device: torch.device) -> list[Tensor]:
        time.sleep(seconds)
        return decode_on_cpu(encoded, device)

    def rate(budget: int) -> float:
        given = materials(paths)
        images = DeviceImageCache(given.loader.images.decoded_cache, CPU, budget, slow_decoder)
        measured = input_device._measure_rates(
            given, DeviceLoader(given.loader, images, SIDE, CPU), images
        )
        return float(measured["images_per_second"]["cuda"])

    assert rate(0) < BATCH / seconds < rate(10**9)


@pytest.mark.parametrize("earlier", [None, "cpu", "cuda"])
def test_a_choice_made_by_the_user_or_an_earlier_run_is_not_measured(
    earlier: Any, paths: list[Path], built: list[BatchDecoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_device, "cached_measurement", lambda *given: pytest.fail("measured"))
    for asked in ("cpu", "cuda"):
        given = materials(paths, input_device=asked)
        loader, choice = choose_loader(given, earlier, decode_on_cpu)
        assert choice == {"device": earlier or asked}
        assert isinstance(loader, DeviceLoader) is (choice["device"] == "cuda")
        assert given.progress.notes == []


def test_a_decoder_that_does_not_work_leads_to_the_cpu_with_one_note(
    paths: list[Path], built: list[BatchDecoder]
) -> None:
    given = materials(paths, 0.3)
    loader, choice = choose_loader(given, decoder=broken)
    assert loader is given.loader
    assert choice["device"] == "cpu"
    assert given.progress.notes == [
        "Training images are prepared on the CPU (the GPU cannot decode JPEG files: torchvision not compiled with nvJPEG support)."
    ]


def test_a_failure_is_not_remembered(paths: list[Path], built: list[BatchDecoder]) -> None:
    assert "refused" in choose_loader(materials(paths, 0.1), decoder=broken)[1]
    assert choose_loader(materials(paths, 0.1), decoder=decode_on_cpu)[1]["device"] == "cuda"


def test_a_device_that_fails_leads_to_the_cpu_with_one_note(
    paths: list[Path], built: list[BatchDecoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    monkeypatch.setattr(DeviceLoader, "_make_views", fail)
    given = materials(paths, 0.3)
    loader, _ = choose_loader(given, decoder=decode_on_cpu)
    assert loader is given.loader
    assert given.progress.notes == [
        "Training images are prepared on the CPU (the GPU path failed: CUDA out of memory. Tried to allocate 2 GiB.)."
    ]


def test_a_broken_image_is_not_taken_for_a_failing_device(
    paths: list[Path], built: list[BatchDecoder]
) -> None:
    paths[0].write_bytes(b"no image")
    with pytest.raises(DecodeError, match=r"0\.jpg"):
        choose_loader(materials(paths), decoder=decode_on_cpu)


@pytest.mark.parametrize("case", ["cpu", "none"])
def test_nothing_is_chosen_where_there_is_no_choice(
    case: str, paths: list[Path], built: list[BatchDecoder]
) -> None:
    given = materials(paths, strength="none" if case == "none" else "light")
    if case == "cpu":
        given.compute_config.device = CPU
    loader, choice = choose_loader(given, decoder=broken)
    assert loader is given.loader
    assert choice == {}
    assert built == []
    assert given.progress.notes == []


def test_training_is_the_same_on_either_path(
    tmp_path: Path, parts: Path, random_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = FinetuneConfig(
        parts, tmp_path / "cpu", ARCHITECTURE, str(random_weights), SIDE, device="cpu", precision="fp32", workers=0,
        epochs=2, finetune_epochs=1, cache_budget=0, dropout=0.0,
    )  # fmt: skip
    expected = finetune(config)
    decoded: list[int] = []

    def decoder(encoded: list[Tensor], device: torch.device) -> list[Tensor]:
        decoded.append(len(encoded))
        return decode_on_cpu(encoded, device)

    def choose(given: Any, earlier: Any) -> tuple[DeviceLoader, dict[str, Any]]:
        images = DeviceImageCache(given.loader.images.decoded_cache, CPU, 10**9, decoder)
        return DeviceLoader(given.loader, images, given.preprocessing.crop, CPU), {"device": "cuda"}

    monkeypatch.setattr(phase_builder, "choose_loader", choose)
    found = finetune(replace(config, output=tmp_path / "device"))
    assert sum(decoded) == 40, "every training image once in three epochs"

    def losses(history: Path) -> list[float]:
        import json

        return [json.loads(line)["train_loss"] for line in history.read_text().splitlines()]

    assert losses(found.history) == pytest.approx(losses(expected.history), rel=0.02)
    assert '"input": {' in found.metrics.read_text()
    assert '"input": {' not in expected.metrics.read_text()


def test_deterministic_takes_the_cpu_and_measures_nothing(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_device, "cached_measurement", lambda *given: pytest.fail("measured"))
    assert choose_loader(materials(paths, deterministic=True), decoder=decode_on_cpu)[1] == {
        "device": "cpu"
    }
