"""Parts of the GPU check that need no GPU: wheel pieces, photos, timing, energy, plain steps."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tools.checks.gpu_check import wheel_pieces
from tools.checks.gpu_check.photos import CLASSES, photo, write_photos
from tools.checks.gpu_check.placement import write_refused_resize
from tools.checks.gpu_check.plain_step import VARIANTS, plain_step_ms
from tools.checks.gpu_check.power import integrate_energy_j, measure_energy
from tools.checks.gpu_check.process_group import check_process_group
from tools.checks.gpu_check.record import Record
from tools.checks.gpu_check.settings import Settings
from tools.checks.gpu_check.timed_batches import TimedBatches


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / "large-1-py3-none-any.whl").write_bytes(random.Random(0).randbytes(2500))
    (folder / "small-1-py3-none-any.whl").write_bytes(b"small")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_joined_wheels_equal_the_originals(wheels: Path, tmp_path: Path) -> None:
    entries = wheel_pieces.split(wheels, tmp_path / "pieces", 1000)
    assert [len(entry["pieces"]) for entry in entries] == [3, 1]
    assert all(path.stat().st_size <= 1000 for path in (tmp_path / "pieces").glob("*.whl.*"))
    assert wheel_pieces.join(tmp_path / "pieces", tmp_path / "joined") == []
    assert contents(tmp_path / "joined") == contents(wheels)


def test_checksums_pass_sha256sum(wheels: Path, tmp_path: Path) -> None:
    wheel_pieces.split(wheels, tmp_path / "pieces", 1000)
    check = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    assert subprocess.run(check, cwd=tmp_path / "pieces", capture_output=True).returncode == 0


def test_join_accepts_one_piece_at_a_time(wheels: Path, tmp_path: Path) -> None:
    pieces = tmp_path / "pieces"
    arrived = tmp_path / "arrived"
    wheel_pieces.split(wheels, pieces, 1000)
    arrived.mkdir()
    names = sorted(path.name for path in pieces.glob("*.whl.*"))
    (pieces / wheel_pieces.LIST).rename(arrived / wheel_pieces.LIST)
    script = [sys.executable, "-I", wheel_pieces.__file__]
    script += ["join", str(arrived), str(tmp_path / "joined")]
    for count, name in enumerate(names, 1):
        (pieces / name).rename(arrived / name)
        process = subprocess.run(script, capture_output=True, text=True)
        (arrived / name).unlink()
        assert process.returncode == (0 if count == len(names) else 1), process.stderr
    assert process.stdout == "All wheels are complete.\n"
    assert contents(tmp_path / "joined") == contents(wheels)


def test_join_rejects_damaged_piece_until_replaced(wheels: Path, tmp_path: Path) -> None:
    pieces = tmp_path / "pieces"
    wheel_pieces.split(wheels, pieces, 1000)
    second = sorted(pieces.glob("large*"))[1]
    content = second.read_bytes()
    second.write_bytes(content[:-1] + b"?")
    with pytest.raises(SystemExit, match="is damaged: its SHA-256"):
        wheel_pieces.join(pieces, tmp_path / "joined")
    second.write_bytes(content)
    assert wheel_pieces.join(pieces, tmp_path / "joined") == []


def test_join_continues_after_interruption(wheels: Path, tmp_path: Path) -> None:
    pieces, joined = tmp_path / "pieces", tmp_path / "joined"
    entry = wheel_pieces.split(wheels, pieces, 1000)[0]
    joined.mkdir()
    partial = b"".join((pieces / piece["file"]).read_bytes() for piece in entry["pieces"])[:1300]
    (joined / f"{entry['wheel']}.joining").write_bytes(partial)
    assert wheel_pieces.join(pieces, joined) == []
    assert contents(joined) == contents(wheels)


def test_photos_are_seeded_and_have_photo_entropy(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos", (500, 375), 2)
    files = sorted(folder.glob("*/*.jpg"))
    assert [path.parent.name for path in files] == [name for name in CLASSES for _ in range(2)]
    again = write_photos(tmp_path / "again", (500, 375), 2)
    assert [path.read_bytes() for path in files] == [
        path.read_bytes() for path in sorted(again.glob("*/*.jpg"))
    ]
    assert len({path.read_bytes() for path in files}) == len(files)
    with Image.open(files[0]) as image:
        assert image.size == (500, 375)
    bits = [path.stat().st_size * 8 / (500 * 375) for path in files]
    assert all(1.2 < bits_per_pixel < 3.5 for bits_per_pixel in bits), bits


def test_photo_has_three_channels_of_full_range() -> None:
    pixels = photo(np.random.default_rng(0), 1, (96, 64))
    assert (pixels.shape, pixels.dtype) == ((64, 96, 3), np.uint8)
    assert pixels.std() > 20


def test_timed_batches_exclude_warmup_steps() -> None:
    labels = torch.zeros(2, dtype=torch.int64)

    def slow_source(_epoch: int):  # type: ignore[no-untyped-def]
        for _ in range(6):
            time.sleep(0.02)
            yield (torch.zeros(2, 3),), labels

    batches = TimedBatches(slow_source, 2, 6, 2, "cpu")
    for number, _ in enumerate(batches.iter_train_batches(1)):
        time.sleep(0.3 if number < 2 else 0.03)
    assert 50 <= batches.times.wall_ms < 250, "a timed step takes 50 ms, a warm-up step 320 ms"
    assert 30 <= batches.times.host_ms < batches.times.wall_ms
    assert batches.times.device_ms is None


def test_energy_is_the_integral_of_sampled_power() -> None:
    assert integrate_energy_j([(0.0, 100.0), (1.0, 200.0), (3.0, 200.0)]) == 150 + 400
    assert integrate_energy_j([(0.0, 100.0)]) == 0


def test_measure_energy_samples_power_under_load() -> None:
    calls: list[str] = []

    class Meter:
        def start(self) -> None:
            calls.append("start")

        def stop(self) -> dict[str, float]:
            calls.append("stop")
            return {"nvml:0": 12.0}

    joules, samples, count = measure_energy(lambda: time.sleep(0.01), lambda: 50.0, Meter(), 0.3)
    assert (joules, calls) == ({"nvml:0": 12.0}, ["start", "stop"])
    assert 3 <= count <= 30
    assert len(samples) >= 3
    assert {watts for _, watts in samples} == {50.0}


@pytest.mark.parametrize("variant", VARIANTS)
def test_plain_step_leaves_the_model_unchanged(variant: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU6(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    originals = [parameter.clone() for parameter in model.parameters()]
    batch = ((torch.randn(2, 3, 8, 8),), torch.tensor([0, 1]))
    wall, device = plain_step_ms(variant, model, batch, 1, "cpu")
    assert wall > 0 < device
    pairs = zip(originals, model.parameters(), strict=True)
    assert all(torch.equal(original, parameter) for original, parameter in pairs)
    assert model[1].inplace


def test_process_group_of_one_runs_every_collective(tmp_path: Path) -> None:
    record = Record(tmp_path / "record.json")
    check_process_group(Settings(tmp_path, "cpu"), record)
    failed = [requirement.text for requirement in record.requirements if not requirement.passed]
    assert failed == []
    assert len(record.requirements) == 6
    assert json.loads((tmp_path / "record.json").read_text())["figures"]["average_ms"] > 0


def test_failed_attempt_becomes_a_requirement(tmp_path: Path) -> None:
    record = Record(tmp_path / "record.json")
    with record.attempt("the kernel runs"):
        raise RuntimeError("no kernel image\nis available")
    (requirement,) = record.requirements
    assert (requirement.passed, requirement.detail) == (False, "RuntimeError: no kernel image")


def test_refused_resize_is_antialiased_uint8_nhwc(tmp_path: Path) -> None:
    import onnx

    onnx_model = onnx.load(write_refused_resize(tmp_path / "refused.onnx"))
    onnx.checker.check_model(onnx_model, full_check=True)
    (node,) = onnx_model.graph.node
    assert node.op_type == "Resize"
    attributes = {
        attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute
    }
    assert attributes["antialias"] == 1
    assert onnx_model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
