"""OpenVINO computes what ONNX Runtime does, in the precision and with the threads asked for."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edgetl.core.errors import BundleError
from edgetl.device.runtime.bundle import open_bundle
from edgetl.device.runtime.preprocessing import preprocess
from edgetl.device.runtime.session import create_session
from edgetl.device.runtime.sessions.session import RuntimeSession, SessionSource, open_session

pytest.importorskip("openvino")


def open_openvino(
    bundle: Path, threads: int = 1, precision: str = "fp32", name: str = "fp32.onnx"
) -> RuntimeSession:
    crop = open_bundle(bundle).preprocessing.crop
    return open_session("openvino", SessionSource((bundle / name,), threads, crop, precision))


def golden_pixels(bundle: Path) -> np.ndarray:
    opened = open_bundle(bundle)
    images = opened.load_golden().load_images()
    return np.concatenate([preprocess(image, opened.preprocessing) for image in images])


def test_logits_of_an_image_file_are_those_of_onnxruntime(stock_bundle: Path) -> None:
    pixels = golden_pixels(stock_bundle)
    session = open_openvino(stock_bundle)

    logits, probabilities = session.run(["logits", "probabilities"], pixels)

    golden = open_bundle(stock_bundle).load_golden()
    assert np.abs(logits - golden.logits).max() < golden.tolerance
    assert np.allclose(probabilities.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_batches_give_the_logits_of_single_images(stock_bundle: Path, batch: int) -> None:
    pixels = golden_pixels(stock_bundle)[:batch]
    session = open_openvino(stock_bundle)

    single = np.concatenate([session.run(["logits"], image[None])[0] for image in pixels])

    assert np.allclose(session.run(["logits"], pixels)[0], single, atol=1e-4)


def test_outputs_are_not_overwritten_by_the_next_call(stock_bundle: Path) -> None:
    first, second = golden_pixels(stock_bundle)[:2]
    session = open_openvino(stock_bundle)

    logits = session.run(["logits"], first[None])[0]
    copy = logits.copy()
    session.run(["logits"], second[None])

    assert (logits == copy).all()


def test_threads_may_share_a_session(stock_bundle: Path) -> None:
    pixels = golden_pixels(stock_bundle)
    session = open_openvino(stock_bundle)
    expected = [session.run(["logits"], image[None])[0] for image in pixels]

    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda image: session.run(["logits"], image[None])[0], pixels))

    assert all((left == right).all() for left, right in zip(outputs, expected, strict=True))


def test_facts_are_read_back_from_the_compiled_model(stock_bundle: Path) -> None:
    session = open_openvino(stock_bundle)

    facts = session.describe()

    assert facts.precision == "fp32"
    assert facts.threads == 1
    assert sum(facts.precision_shares.values()) == pytest.approx(1)
    assert facts.options["INFERENCE_PRECISION_HINT"] == "f32"


def test_bfloat16_is_reported_where_the_cpu_has_it(stock_bundle: Path) -> None:
    import openvino

    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bfloat16")

    assert open_openvino(stock_bundle, precision="bf16").describe().precision == "bf16"


def test_one_thread_takes_one_core(stock_bundle: Path) -> None:
    pixels = golden_pixels(stock_bundle)[:1]
    session = open_openvino(stock_bundle, threads=1)
    session.run(["logits"], pixels)

    start, cpu_start = time.perf_counter(), sum(os.times()[:2])
    for _ in range(200):
        session.run(["logits"], pixels)
    cpu_share = (sum(os.times()[:2]) - cpu_start) / (time.perf_counter() - start)

    assert cpu_share < 1.2


def test_profile_names_the_slowest_nodes_first(stock_bundle: Path) -> None:
    session = open_openvino(stock_bundle)

    nodes = session.profile(golden_pixels(stock_bundle)[:1], 2)

    assert sum(node.share for node in nodes) == pytest.approx(1)
    assert [node.us for node in nodes] == sorted((node.us for node in nodes), reverse=True)


def test_file_that_is_no_model_is_refused(stock_bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.xml"
    broken.write_text("<net>")

    with pytest.raises(BundleError, match=r"OpenVINO .* cannot load broken\.xml"):
        open_session("openvino", SessionSource((broken,), 1, 32))


def test_openvino_resizes_without_antialiasing(stock_bundle: Path) -> None:
    # The reason why the session cuts the network out; a later OpenVINO may make this test fail.
    import openvino

    bundle = open_bundle(stock_bundle)
    image = np.random.default_rng(0).integers(0, 255, (300, 450, 3)).astype(np.uint8)
    model = openvino.Core().compile_model(
        str(stock_bundle / "fp32.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    expected = create_session(stock_bundle / "fp32.onnx").run(["logits"], {"image": image[None]})[0]

    whole_file = model(image[None])["logits"]
    network = open_openvino(stock_bundle).run(["logits"], preprocess(image, bundle.preprocessing))[
        0
    ]

    assert np.abs(whole_file - expected).max() > 100 * np.abs(network - expected).max()
