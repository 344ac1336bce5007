"""ncnn computes what PyTorch does, in the precision and with the threads asked for."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edgetl.core.errors import BundleError
from edgetl.device.runtime.sessions.session import RuntimeSession, SessionSource, open_session

ncnn = pytest.importorskip("ncnn")
from tests.helpers.ncnn_models import (  # noqa: E402
    SIDE,
    compute_logits,
    make_pixels,
    write_small_model,
)


def open_small_model(folder: Path, threads: int = 1, precision: str = "fp32") -> RuntimeSession:
    _, files = write_small_model(folder)
    return open_session("ncnn", SessionSource(files, threads, SIDE, precision))


def test_logits_are_those_of_pytorch(tmp_path: Path) -> None:
    network, files = write_small_model(tmp_path)
    session = open_session("ncnn", SessionSource(files, 1, SIDE))
    pixels = make_pixels(3)

    logits, probabilities = session.run(["logits", "probabilities"], pixels)

    # ncnn's default, half precision in matrix products, differs by 1e-4.
    assert np.abs(logits - compute_logits(network, pixels)).max() < 1e-5
    assert np.allclose(probabilities.sum(1), 1, atol=1e-5)
    assert set(session.output_names) == {"logits", "probabilities"}


def test_bfloat16_is_computed_and_reported(tmp_path: Path) -> None:
    network, files = write_small_model(tmp_path)
    session = open_session("ncnn", SessionSource(files, 1, SIDE, "bf16"))
    pixels = make_pixels(3)

    difference = np.abs(session.run(["logits"], pixels)[0] - compute_logits(network, pixels)).max()

    assert 1e-4 < difference < 0.1
    assert session.describe().precision_shares["bf16"] >= 0.5


def test_facts_are_those_of_the_loaded_net(tmp_path: Path) -> None:
    facts = open_small_model(tmp_path, threads=2).describe()

    assert facts.precision_shares == {"fp32": 1.0}
    assert (facts.version, facts.threads) == (ncnn.__version__, 2)
    assert facts.options["use_fp16_storage"] == "False"


def test_outputs_are_not_overwritten_by_the_next_call(tmp_path: Path) -> None:
    session = open_small_model(tmp_path)
    first, second = make_pixels(2)

    logits = session.run(["logits"], first[None])[0]
    copy = logits.copy()
    session.run(["logits"], second[None])

    assert (logits == copy).all()


def test_threads_may_share_a_session(tmp_path: Path) -> None:
    session = open_small_model(tmp_path)
    images = [image[None] for image in make_pixels(8)]
    expected = [session.run(["logits"], image)[0] for image in images]

    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda image: session.run(["logits"], image)[0], images))

    assert all((left == right).all() for left, right in zip(outputs, expected, strict=True))


def test_array_in_another_memory_order_gives_equal_logits(tmp_path: Path) -> None:
    session = open_small_model(tmp_path)
    pixels = make_pixels(2)
    transposed = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)

    assert (session.run(["logits"], transposed)[0] == session.run(["logits"], pixels)[0]).all()


def test_one_thread_takes_one_core(tmp_path: Path) -> None:
    session = open_small_model(tmp_path)
    pixels = np.zeros((1, 3, 512, 512), np.float32)
    session.run(["logits"], pixels)

    start, cpu_start = time.perf_counter(), sum(os.times()[:2])
    while time.perf_counter() - start < 0.5:
        session.run(["logits"], pixels)
    cpu_share = (sum(os.times()[:2]) - cpu_start) / (time.perf_counter() - start)

    assert cpu_share < 1.1


@pytest.mark.parametrize("index", [0, 1])
def test_damaged_file_is_refused_by_name(tmp_path: Path, index: int) -> None:
    _, files = write_small_model(tmp_path)
    files[index].write_bytes(files[index].read_bytes()[:40])

    with pytest.raises(BundleError, match=f"ncnn .* cannot load .*{files[index].name}"):
        open_session("ncnn", SessionSource(files, 1, SIDE))


def test_output_of_no_layer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot compute activation_maps"):
        open_small_model(tmp_path).run(["activation_maps"], make_pixels(1))
