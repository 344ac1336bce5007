"""The parts of the int8 search, each against what it promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import numpy_helper
from torch import nn

from edgetl.core.errors import ExportError
from edgetl.core.preprocessing import Preprocessing
from edgetl.core.registry import QUANTIZERS, load_from_registry
from edgetl.device.hardware.info import has_int8_dot_product
from edgetl.export.graph.torch_export import NetworkGraph, export_network_graph
from edgetl.export.parity.divergence import describe_first_noisy_module
from edgetl.export.quantize import int8_search as search
from edgetl.export.quantize.bias_correction import correct_biases, layers_by_error
from edgetl.export.quantize.calibration import CALIBRATION_METHODS, Calibration
from edgetl.export.quantize.equalization import equalize
from edgetl.export.quantize.images import (
    MIN_QUANTIZATION_IMAGES,
    CroppedImages,
    QuantizationImages,
    load_quantization_images,
)
from edgetl.export.quantize.int8_search import candidate_schemes, quantize_static_int8
from edgetl.export.quantize.layers import fake_quantize_weight, find_layers, with_constants
from edgetl.export.quantize.qdq import Scheme, quantize
from edgetl.export.quantize.rewrites import rewrite_operators
from edgetl.export.quantize.scoring import CandidateScore, CandidateScorer, compute_logits, sqnr_db
from edgetl.export.quantize.task import QuantizationTask, QuantizedModel
from edgetl.export.variants import operator_times, slowest_operators_text

SIDE, CLASSES = 32, 3
CONTRACT = Preprocessing.for_image_size(SIDE)
CHANNEL_WISE = Scheme("minmax", per_channel=True, activations="uint8", reduce_range=True)
TENSOR_WISE = Scheme("minmax", per_channel=False, activations="uint8", reduce_range=True)


class Small(nn.Module):
    """A chain of every kind of layer that matters here: ReLU between convolutions, a residual, HardSwish, a pool, two Linears."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.third, self.fourth = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.hidden, self.last = nn.Linear(8, 8), nn.Linear(8, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        value = torch.relu(self.third(torch.relu(self.second(torch.relu(self.first(images))))))
        value = nn.functional.hardswish(self.fourth(value)) + value
        value = value * nn.functional.hardsigmoid(value.mean((2, 3), keepdim=True))
        logits: torch.Tensor = self.last(nn.functional.hardswish(self.hidden(value.mean((2, 3)))))
        return logits


@cache
def small_graph() -> NetworkGraph:
    torch.manual_seed(0)
    return export_network_graph(Small().eval(), SIDE, CLASSES, 18)


@cache
def small_network() -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(small_graph().model)


def crops(count: int, seed: int = 0) -> CroppedImages:
    generator = np.random.default_rng(seed)
    # Smooth pictures of different colours: noise would look the same to every network.
    coarse = generator.integers(0, 256, (count, 4, 4, 3)).astype(np.uint8)
    pixels = coarse.repeat(SIDE // 4, 1).repeat(SIDE // 4, 2)
    return CroppedImages(pixels, generator.integers(0, CLASSES, count), CONTRACT)


@pytest.fixture
def task() -> QuantizationTask:
    images = QuantizationImages(crops(40), crops(30, 1))
    return QuantizationTask(
        small_network(),
        small_graph().module_outputs,
        lambda: images,
        1.0,
        lambda step, done, total: None,
    )


def difference(left: onnx.ModelProto, right: onnx.ModelProto) -> float:
    images = crops(8, 5)
    return float(np.abs(compute_logits(left, images) - compute_logits(right, images)).max())


# --- images


@pytest.fixture
def files(make_images: Callable[..., Path]) -> list[Path]:
    return sorted(make_images("data", ["a", "b", "c"], count=20).rglob("*.png"))


def test_both_parts_hold_every_class_and_share_no_image(files: list[Path]) -> None:
    labels = [ord(path.parent.name) - ord("a") for path in files]
    images = load_quantization_images(files, labels, CONTRACT, "training")
    assert images.calibration.labels is not None
    assert images.held_out.labels is not None
    assert (len(images.calibration), len(images.held_out)) == (36, 24)
    assert np.bincount(images.calibration.labels).min() >= 11
    assert np.bincount(images.held_out.labels).min() >= 7
    pixels = [
        image.tobytes() for part in (images.calibration, images.held_out) for image in part.pixels
    ]
    assert len(set(pixels)) == 60
    again = load_quantization_images(files, labels, CONTRACT, "training")
    assert np.array_equal(again.calibration.pixels, images.calibration.pixels)


def test_too_few_images_are_told(files: list[Path]) -> None:
    with pytest.raises(
        ExportError, match=f"at least {MIN_QUANTIZATION_IMAGES} images .* there are 19"
    ):
        load_quantization_images(files[:19], None, CONTRACT, "training")


# --- calibration


def test_ranges_hold_what_was_seen() -> None:
    calibration = Calibration(small_network(), crops(20))
    observed, exact = calibration.ranges("minmax"), calibration.activation_stats
    for method in CALIBRATION_METHODS:
        ranges = calibration.ranges(method)
        assert set(ranges.keys()) == set(exact)
        for name, seen in exact.items():
            low, high = (float(bound) for bound in ranges[name].range_value)
            widest = [float(bound) for bound in observed[name].range_value]
            assert widest == pytest.approx([seen.low, seen.high])
            assert widest[0] - 1e-6 <= low < high <= widest[1] + 1e-6, (method, name)


def test_means_are_the_channels_own() -> None:
    images = crops(9)
    calibration = Calibration(small_network(), images)
    expected = np.concatenate(list(images.batches())).mean((0, 2, 3))
    assert calibration.activation_stats["pixels"].channel_means == pytest.approx(expected, abs=1e-4)


# --- rewriting and equalisation change nothing but the form


def test_rewritten_operators_compute_the_same() -> None:
    rewritten = rewrite_operators(small_network())
    kinds = {node.op_type for node in rewritten.graph.node}
    assert {"HardSwish", "HardSigmoid", "ReduceMean"} <= {
        node.op_type for node in small_network().graph.node
    }
    assert not {"HardSwish", "HardSigmoid", "ReduceMean"} & kinds
    assert difference(small_network(), rewritten) < 1e-5


def test_equalised_layers_compute_the_same_with_evener_weights() -> None:
    uneven = _uneven()
    evened = equalize(uneven)
    assert evened is not None
    assert difference(uneven, evened) < 1e-4

    def spread(network: onnx.ModelProto) -> float:
        first = next(find_layers(network))
        peaks = np.abs(first.weight).reshape(len(first.weight), -1).max(1)
        return float(peaks.max() / peaks.min())

    assert spread(evened) < spread(uneven) / 5


def test_without_neighbours_there_is_nothing_to_equalise() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.SiLU(),
        nn.Conv2d(4, 4, 1),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(4 * SIDE * SIDE, CLASSES),
    )
    assert equalize(export_network_graph(network.eval(), SIDE, CLASSES, 18).model) is None


def _uneven() -> onnx.ModelProto:
    """The same function with channels of the first layers scaled against each other by up to 100."""
    found = {layer.name: layer for layer in find_layers(small_network())}
    first, second = list(found.values())[:2]
    factor = np.logspace(-1, 1, 8).astype(np.float32)
    return with_constants(
        small_network(),
        {
            first.node.input[1]: first.weight * factor[:, None, None, None],
            first.node.input[2]: first.bias * factor if first.bias is not None else factor,
            second.node.input[1]: second.weight / factor[:, None, None, None],
        },
    )


# --- quantizing


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, (3, 4, 2, 2), elements=st.floats(-100, 100, width=32)),
    st.booleans(),
    st.sampled_from([7, 8]),
)
def test_weights_move_by_half_a_step_at_most(weight: Any, per_channel: bool, bits: int) -> None:
    peak = np.abs(weight).max(axis=(1, 2, 3) if per_channel else None, keepdims=True)
    step = np.maximum(peak, 1e-12) / {8: 127, 7: 64}[bits]
    assert (
        np.abs(fake_quantize_weight(weight, per_channel, bits) - weight) <= 0.5001 * step + 1e-9
    ).all()


@pytest.mark.parametrize(
    "scheme", candidate_schemes(has_vnni=False), ids=lambda scheme: scheme.name
)
def test_every_scheme_gives_a_valid_network_near_to_float(scheme: Scheme) -> None:
    rewritten = rewrite_operators(small_network())
    quantized = quantize(rewritten, Calibration(rewritten, crops(20)).ranges(scheme.method), scheme)
    onnx.checker.check_model(quantized, full_check=True)
    kinds = [node.op_type for node in quantized.graph.node]
    assert kinds.count("QuantizeLinear") >= 6
    assert (
        sqnr_db(compute_logits(small_network(), crops(20)), compute_logits(quantized, crops(20)))
        > 8
    )
    names = [value.name for value in quantized.graph.initializer]
    contents = [
        (value.data_type, tuple(value.dims), numpy_helper.to_array(value).tobytes())
        for value in quantized.graph.initializer
    ]
    assert len(set(names)) == len(names)
    assert len(set(contents)) == len(contents), "equal constants are shared"


def test_excluded_layers_stay_in_float_and_quantizing_is_deterministic() -> None:
    ranges = Calibration(small_network(), crops(20)).ranges("minmax")
    excluded = next(find_layers(small_network())).name
    quantized = quantize(small_network(), ranges, CHANNEL_WISE, [excluded])
    node = next(node for node in quantized.graph.node if node.name == excluded)
    assert node.input[1] in {layer.node.input[1] for layer in find_layers(small_network())}
    again = quantize(small_network(), ranges, CHANNEL_WISE, [excluded])
    assert quantized.SerializeToString(deterministic=True) == again.SerializeToString(
        deterministic=True
    )


def test_the_layer_with_the_coarsest_steps_is_named_first() -> None:
    target = list(find_layers(small_network()))[3]
    weight = target.weight.copy()
    weight[0] *= 300  # one channel sets the step for all others
    spoilt = with_constants(small_network(), {target.node.input[1]: weight})
    ranges = Calibration(spoilt, crops(20)).ranges("minmax")
    order = layers_by_error(spoilt, ranges, TENSOR_WISE, crops(20))
    assert sorted(order) == sorted(layer.name for layer in find_layers(spoilt))

    def rest(name: str) -> float:
        layer = next(layer for layer in find_layers(spoilt) if layer.name == name)
        error = fake_quantize_weight(layer.weight, False, 7) - layer.weight
        return float(np.abs(error).mean() / np.abs(layer.weight).mean())

    assert rest(order[0]) >= max(rest(name) for name in order) * 0.2


def test_corrected_biases_bring_back_the_mean() -> None:
    target = list(find_layers(small_network()))[2]
    images = crops(30)
    calibration = Calibration(small_network(), images)
    corrected = correct_biases(small_network(), calibration, TENSOR_WISE)
    layer = next(layer for layer in find_layers(corrected) if layer.name == target.name)
    error = (fake_quantize_weight(target.weight, False, 7) - target.weight).reshape(8, 8)
    means = calibration.activation_stats[target.node.input[0]].channel_means
    assert layer.bias is not None
    assert target.bias is not None
    # Mean output with rounded weights and the new bias = mean output of the float layer.
    assert error @ means + layer.bias == pytest.approx(target.bias, abs=1e-5)


# --- the search


def test_the_search_records_every_candidate_and_chooses_one_that_fits(
    task: QuantizationTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantized = quantize_static_int8(task)
    report = quantized.report
    tried = [
        candidate
        for candidate in report["candidates"]
        if not candidate["repairs"] and not candidate["restored_layers"]
    ]
    assert len(tried) == 12
    assert {
        (c["scheme"]["method"], c["scheme"]["per_channel"], c["scheme"]["activations"])
        for c in tried
    } == {
        (method, wise, kind)
        for method in CALIBRATION_METHODS
        for wise in (True, False)
        for kind in ("uint8", "int8")
    }
    for candidate in report["candidates"]:
        assert candidate["held_back"]["ms"] > 0
        assert candidate["held_back"]["bytes"] > 0
        assert candidate["held_back"]["top1"] is not None
    chosen = report["candidates"][report["chosen"]]["held_back"]
    assert quantized.is_within_limit is report["fits"] is (chosen["drop"] <= task.max_accuracy_drop)
    assert (report["calibration_images"], report["held_back_images"]) == (40, 30)
    dimensions = {value.name: len(value.dims) for value in quantized.network.graph.initializer}
    flat = [
        node
        for node in quantized.network.graph.node
        if node.op_type == "DequantizeLinear" and dimensions.get(node.input[0], 2) < 2
    ]
    assert flat
    assert all(
        [entry.i for entry in node.attribute if entry.name == "axis"] == [0] for node in flat
    ), "OpenCV refuses the default"


class Harsh(CandidateScorer):
    """Every candidate loses 50 points, less 5 for each layer in float."""

    def score(self, network: onnx.ModelProto) -> CandidateScore:
        floats = sum(
            node.op_type in ("Conv", "Gemm") and not _is_quantized(network, node)
            for node in network.graph.node
        )
        return CandidateScore(0.5, 50.0 - 5 * floats, 10.0, 1.0, 1)


def _is_quantized(network: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    producers = {name: other.op_type for other in network.graph.node for name in other.output}
    return producers.get(node.input[1]) == "DequantizeLinear"


@pytest.mark.parametrize(("allowed", "fits"), [(45.0, True), (41.0, True), (1.0, False)])
def test_repairs_come_in_order_until_it_fits_or_is_given_up(
    task: QuantizationTask, monkeypatch: pytest.MonkeyPatch, allowed: float, fits: bool
) -> None:
    monkeypatch.setattr(search, "CandidateScorer", Harsh)
    quantized = quantize_static_int8(replace(task, max_accuracy_drop=allowed))
    repaired = quantized.report["candidates"][12:]
    assert [candidate["repairs"][-1] for candidate in repaired[:3]] == [
        "bias correction",
        "activations in float",
        "cross-layer equalisation",
    ]
    restored = [len(candidate["restored_layers"]) for candidate in repaired[3:]]
    assert quantized.report["worst_layers"][: restored[-1]] == repaired[-1]["restored_layers"]
    assert restored == {45.0: [1], 41.0: [1, 2], 1.0: [1, 2, 3]}[allowed], (
        "at most half of the six layers"
    )
    assert quantized.is_within_limit is fits


def test_a_correction_of_biases_is_taken_wherever_it_brings_the_network_nearer_to_float(
    task: QuantizationTask,
) -> None:
    report = quantize_static_int8(replace(task, max_accuracy_drop=100.0)).report
    plain, corrected = report["candidates"][:12], report["candidates"][12]
    assert corrected["repairs"] == ["bias correction"]
    best = max(
        (one for one in plain if one["scheme"] == corrected["scheme"]),
        key=lambda one: one["held_back"]["sqnr_db"],
    )
    is_better = (corrected["held_back"]["drop"], -corrected["held_back"]["sqnr_db"]) < (
        best["held_back"]["drop"],
        -best["held_back"]["sqnr_db"],
    )
    assert (report["chosen"] == 12) is is_better
    assert len(report["candidates"]) == 13, "nothing else had to be repaired"


def test_operators_that_the_quantizer_does_not_know_stay_in_float() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.GELU(),
        nn.Conv2d(4, 4, 3),
        nn.Flatten(),
        nn.Linear(4 * 28 * 28, CLASSES),
    )
    model = onnx.shape_inference.infer_shapes(
        export_network_graph(network.eval(), SIDE, CLASSES, 18).model
    )
    quantized = quantize(model, Calibration(model, crops(20)).ranges("minmax"), CHANNEL_WISE)
    assert "Erf" in {node.op_type for node in quantized.graph.node}
    assert all(
        _is_quantized(quantized, node) for node in quantized.graph.node if node.op_type == "Conv"
    )
    times = operator_times(quantized)
    assert times["Erf"]["nodes"] == 1
    assert sum(found["share"] for found in times.values()) == pytest.approx(1)


def test_what_does_not_multiply_integers_is_to_blame() -> None:
    shares = {"QLinearConv": 0.5, "HardSwish": 0.3, "QLinearMul": 0.19, "Softmax": 0.01}
    said = slowest_operators_text(
        {kind: {"nodes": 2, "share": share} for kind, share in shares.items()}
    )
    assert (
        said
        == "HardSwish (2 nodes, 30% of the time, in float), QLinearMul (2 nodes, 19% of the time)"
    )


def test_logits_are_not_rounded_behind_a_head_that_is_a_convolution() -> None:
    torch.manual_seed(0)
    head = (nn.Conv2d(8, CLASSES, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    nn.init.constant_(head[0].bias, 1.0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *head)
    model = rewrite_operators(
        onnx.shape_inference.infer_shapes(
            export_network_graph(network.eval(), SIDE, CLASSES, 18).model
        )
    )
    quantized = quantize(model, Calibration(model, crops(20)).ranges("minmax"), CHANNEL_WISE)
    assert all(
        _is_quantized(quantized, node) for node in quantized.graph.node if node.op_type == "Conv"
    )
    logits = compute_logits(quantized, crops(40))
    assert len(np.unique(logits)) > 0.9 * logits.size, "8 bits would have given some of them twice"


def test_scores_are_remembered_so_that_a_second_search_chooses_alike(
    task: QuantizationTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    referee = CandidateScorer(task.network, task.images.held_out)
    first = referee.score(task.network)
    monkeypatch.setattr(
        "edgetl.export.quantize.scoring._measure_latency_ms", lambda session, images: 1e9
    )
    assert referee.score(task.network) == first


def test_the_first_module_that_is_lost_in_noise_is_named(task: QuantizationTask) -> None:
    pixels = next(crops(4).batches())
    wrong = {
        layer.node.input[1]: -layer.weight
        for layer in find_layers(task.network)
        if layer.name == list(find_layers(task.network))[1].name
    }
    said = describe_first_noisy_module(
        task.network, with_constants(task.network, wrong), task.module_outputs, pixels
    )
    assert said.startswith("The first module that is lost in noise is second:")
    assert "No single module" in describe_first_noisy_module(
        task.network, task.network, task.module_outputs, pixels
    )
    half: QuantizedModel = load_from_registry(QUANTIZERS, "fp16", "variant")(task)
    assert "No single module" in describe_first_noisy_module(
        task.network, half.network, task.module_outputs, pixels
    ), "names survive the conversion"
    quantized = quantize(
        rewrite_operators(task.network),
        Calibration(rewrite_operators(task.network), crops(20)).ranges("minmax"),
        CHANNEL_WISE,
    )
    assert "No single module" in describe_first_noisy_module(
        task.network, quantized, task.module_outputs, pixels
    ), "ReLU is left to the rounding"
    infinite = {
        layer.node.input[1]: np.full_like(layer.weight, 3e38)
        for layer in list(find_layers(task.network))[2:3]
    }
    assert "no longer finite is third" in describe_first_noisy_module(
        task.network, with_constants(task.network, infinite), task.module_outputs, pixels
    )


def test_a_network_that_the_quantizer_refuses_is_told(
    task: QuantizationTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "edgetl.export.quantize.qdq.QDQQuantizer.quantize_model", lambda self: 1 / 0
    )
    with pytest.raises(ExportError, match=r"quantizer cannot take this network .*division by zero"):
        quantize_static_int8(task)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flags\t\t: fpu avx2 avx512_vnni", True), ("flags\t\t: fpu avx2 avx512f", False), ("flags\t\t: avx_vnni", True),
        ("Features\t: fp asimd asimddp", True), ("Features\t: fp asimd", False), ("", False),
    ],
)  # fmt: skip
def test_what_a_cpu_can(tmp_path: Path, line: str, expected: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\n")
    assert has_int8_dot_product(tmp_path) is expected
    assert has_int8_dot_product(tmp_path / "nowhere") is False
    assert all(scheme.reduce_range is not expected for scheme in candidate_schemes(expected))


# --- the other variants


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_variant_is_valid_and_near_to_float(task: QuantizationTask, name: str) -> None:
    quantized: QuantizedModel = load_from_registry(QUANTIZERS, name, "variant")(task)
    onnx.checker.check_model(quantized.network, full_check=True)
    assert [value.name for value in quantized.network.graph.input] == ["pixels"]
    assert quantized.network.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    images = crops(20)
    assert sqnr_db(
        compute_logits(task.network, images), compute_logits(quantized.network, images)
    ) > {"fp16": 40}.get(name, 8)
    again: QuantizedModel = load_from_registry(QUANTIZERS, name, "variant")(task)
    if name != "int8":  # its search looks at the clock
        assert again.network.SerializeToString(
            deterministic=True
        ) == quantized.network.SerializeToString(deterministic=True)


def test_weights_in_int8_are_a_quarter() -> None:
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 64), nn.ReLU(), nn.Linear(64, CLASSES)
    )
    model = onnx.shape_inference.infer_shapes(
        export_network_graph(network.eval(), SIDE, CLASSES, 18).model
    )
    task = QuantizationTask(
        model, {}, lambda: QuantizationImages(crops(20), crops(20)), 1.0, lambda *_: None
    )
    for name in ("int8-weights", "int8-dynamic", "int8"):
        smaller: QuantizedModel = load_from_registry(QUANTIZERS, name, "variant")(task)
        assert smaller.network.ByteSize() < model.ByteSize() / 3.5, name


@pytest.mark.parametrize("where", ["activation", "weight"])
def test_what_float16_cannot_hold_is_refused(task: QuantizationTask, where: str) -> None:
    first = next(find_layers(task.network))
    if where == "activation":
        changed = {first.node.input[1]: first.weight * 1e5}
        message = "fp16 would overflow: .* reaches"
    else:
        weight = first.weight.copy()
        weight[0] = 0
        weight[0, 0, 0, 0] = 1e5
        images = QuantizationImages(
            crops(20),
            CroppedImages(
                np.zeros((20, SIDE, SIDE, 3), np.uint8), None, Preprocessing(36, SIDE, (0.0,) * 3)
            ),
        )
        task = replace(task, load_images=lambda: images)
        changed, message = {first.node.input[1]: weight}, "fp16 would overflow: the weights"
    huge = onnx.shape_inference.infer_shapes(with_constants(task.network, changed))
    with pytest.raises(ExportError, match=message):
        load_from_registry(QUANTIZERS, "fp16", "variant")(replace(task, network=huge))


@given(arrays(np.float64, 20, elements=st.floats(-5, 5)), st.floats(0.001, 0.5))
def test_sqnr_falls_by_six_db_when_noise_doubles(signal: Any, noise: float) -> None:
    signal = signal + 1.0
    once = sqnr_db(signal, signal + noise)
    assert once - sqnr_db(signal, signal + 2 * noise) == pytest.approx(6.02, abs=0.01)
    assert sqnr_db(signal, signal) == 200.0
