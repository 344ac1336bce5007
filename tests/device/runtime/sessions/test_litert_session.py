"""Sessions of LiteRT: batches, threads, and what they report."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgetl.core.errors import BundleError
from edgetl.device.runtime.preprocessing import to_channels_last
from edgetl.device.runtime.sessions.session import SessionSource

pytest.importorskip("ai_edge_litert")

from edgetl.device.runtime.sessions.litert_session import LiteRtSession
from edgetl.export.formats.tflite_conversion import convert_onnx

SIDE, CHANNELS = 56, 64


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three convolutions, a mean and a softmax."""
    random = np.random.default_rng(0)
    constants = {
        "w1": random.standard_normal((CHANNELS, 3, 3, 3)) / 5,
        "w2": random.standard_normal((CHANNELS, CHANNELS, 3, 3)) / 24,
        "w3": random.standard_normal((5, CHANNELS, 1, 1)) / 8,
    }
    nodes = [
        helper.make_node("Conv", ["pixels", "w1"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], pads=[1] * 4),
        helper.make_node("Conv", ["c", "w3"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
            for name in ("logits", "probabilities")
        ],
        [
            numpy_helper.from_array(value.astype(np.float32), name)
            for name, value in constants.items()
        ],
    )
    path = tmp_path_factory.mktemp("litert") / "network.tflite"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    convert_onnx(onnx.shape_inference.infer_shapes(model), path)
    return path


def images(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((count, 3, SIDE, SIDE), np.float32)


def open_session(path: Path, threads: int = 1) -> LiteRtSession:
    return LiteRtSession(SessionSource((path,), threads, SIDE))


def test_batches_equal_single_images(file: Path) -> None:
    session = open_session(file)
    batch = images(3)
    [logits] = session.run(["logits"], batch)
    singles = [session.run(["logits"], image[None])[0] for image in batch]
    np.testing.assert_allclose(logits, np.concatenate(singles), atol=1e-5)


def test_order_in_memory_does_not_matter(file: Path) -> None:
    session = open_session(file)
    batch = images(2)
    [expected] = session.run(["logits"], batch)
    [logits] = session.run(["logits"], to_channels_last(batch))
    np.testing.assert_array_equal(logits, expected)


def test_outputs_come_in_the_requested_order(file: Path) -> None:
    session = open_session(file)
    assert sorted(session.output_names) == ["logits", "probabilities"]
    probabilities, logits = session.run(["probabilities", "logits"], images(2))
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(probabilities.argmax(1), logits.argmax(1))


def test_results_are_not_overwritten(file: Path) -> None:
    session = open_session(file)
    [first] = session.run(["logits"], images(1))
    copy = first.copy()
    session.run(["logits"], images(1, seed=1))
    np.testing.assert_array_equal(first, copy)


def test_threads_may_share_a_session(file: Path) -> None:
    session = open_session(file)
    batches = [images(1, seed) for seed in range(8)]
    expected = [session.run(["logits"], batch)[0] for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda batch: session.run(["logits"], batch)[0], batches))
    np.testing.assert_array_equal(results, expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_bounded(file: Path, threads: int) -> None:
    session = open_session(file, threads)
    batch = images(1)
    session.run(["logits"], batch)
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(60):
        session.run(["logits"], batch)
    cores = (time.process_time() - cpu) / (time.perf_counter() - wall)
    assert cores < threads + 0.1
    assert session.describe().threads == threads


def test_all_operators_run_on_xnnpack(file: Path) -> None:
    facts = open_session(file).describe()
    assert facts.precision_shares == {"fp32": 1.0}
    delegated, _, total, _ = facts.options["XNNPACK"].split()
    assert delegated == total
    assert facts.version[0].isdigit()


def test_broken_files_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "litert-fp32.tflite"
    path.write_bytes(b"TFL3" * 10)
    with pytest.raises(BundleError, match=r"LiteRT .* cannot load litert-fp32\.tflite"):
        open_session(path)
