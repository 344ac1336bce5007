"""Quantization: images, calibration, rewrites, the int8 search and the other variants."""

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

from edgetl.core.artifacts.bundle import (
    OperatorTime,
    QuantizationScheme,
    QuantizationScore,
    SearchRecord,
)
from edgetl.core.config.export import SearchMode
from edgetl.core.errors import ExportError
from edgetl.core.preprocessing import Preprocessing
from edgetl.core.registry import QUANTIZERS, load_from_registry
from edgetl.device.hardware.info import has_int8_dot_product
from edgetl.export.graph.torch_export import NetworkGraph, export_network_graph
from edgetl.export.parity.divergence import describe_first_noisy_module
from edgetl.export.quantize import int8_search as search
from edgetl.export.quantize.bias_correction import correct_biases, layers_by_error
from edgetl.export.quantize.calibration import CALIBRATION_METHODS, ActivationStats, Calibration
from edgetl.export.quantize.equalization import equalize
from edgetl.export.quantize.images import (
    MIN_QUANTIZATION_IMAGES,
    CroppedImages,
    QuantizationImages,
    load_quantization_images,
)
from edgetl.export.quantize.int8_search import _Int8Search, all_schemes, quantize_static_int8
from edgetl.export.quantize.layers import fake_quantize_weight, find_layers, with_constants
from edgetl.export.quantize.qdq import quantize
from edgetl.export.quantize.rewrites import rewrite_operators
from edgetl.export.quantize.scoring import CandidateScorer, compute_logits, sqnr_db
from edgetl.export.quantize.task import QuantizationTask, QuantizedModel
from edgetl.export.variants import operator_times, slowest_operators_text

SIDE, CLASSES = 32, 3
PREPROCESSING = Preprocessing.for_image_size(SIDE)
PER_CHANNEL = QuantizationScheme("minmax", per_channel=True, activations="uint8", reduce_range=True)
PER_TENSOR = QuantizationScheme("minmax", per_channel=False, activations="uint8", reduce_range=True)


class Small(nn.Module):
    """A network with ReLU between convolutions, a residual, HardSwish, a pool and two Linears."""

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
    # Use smooth images of different colors; every network would give noise images equal logits.
    coarse = generator.integers(0, 256, (count, 4, 4, 3)).astype(np.uint8)
    pixels = coarse.repeat(SIDE // 4, 1).repeat(SIDE // 4, 2)
    return CroppedImages(pixels, generator.integers(0, CLASSES, count), PREPROCESSING)


@pytest.fixture
def task() -> QuantizationTask:
    images = QuantizationImages(crops(40), crops(30, 1))
    return QuantizationTask(
        small_network(),
        small_graph().module_outputs,
        lambda: images,
        1.0,
        lambda step, done, total: None,
        search="thorough",
    )


def max_logit_difference(left: onnx.ModelProto, right: onnx.ModelProto) -> float:
    images = crops(8, 5)
    return float(np.abs(compute_logits(left, images) - compute_logits(right, images)).max())


# --- images


@pytest.fixture
def files(make_images: Callable[..., Path]) -> list[Path]:
    return sorted(make_images("data", ["a", "b", "c"], count=20).rglob("*.png"))


def test_image_subsets_are_stratified_and_disjoint(files: list[Path]) -> None:
    labels = [ord(path.parent.name) - ord("a") for path in files]
    images = load_quantization_images(files, labels, PREPROCESSING, "training")
    assert images.calibration.labels is not None
    assert images.held_out.labels is not None
    assert (len(images.calibration), len(images.held_out)) == (36, 24)
    assert np.bincount(images.calibration.labels).min() >= 11
    assert np.bincount(images.held_out.labels).min() >= 7
    pixels = [
        image.tobytes()
        for subset in (images.calibration, images.held_out)
        for image in subset.pixels
    ]
    assert len(set(pixels)) == 60
    again = load_quantization_images(files, labels, PREPROCESSING, "training")
    assert np.array_equal(again.calibration.pixels, images.calibration.pixels)


def test_too_few_images_are_refused(files: list[Path]) -> None:
    with pytest.raises(ExportError, match=f"at least {MIN_QUANTIZATION_IMAGES} images .* got 19"):
        load_quantization_images(files[:19], None, PREPROCESSING, "training")


# --- calibration


def test_ranges_are_within_observed_values() -> None:
    calibration = Calibration(small_network(), crops(20))
    minmax_ranges = calibration.ranges("minmax")
    for method in CALIBRATION_METHODS:
        ranges = calibration.ranges(method)
        assert set(ranges.keys()) == set(calibration.activation_stats)
        for name, stats in calibration.activation_stats.items():
            low, high = (float(bound) for bound in ranges[name].range_value)
            widest = [float(bound) for bound in minmax_ranges[name].range_value]
            assert widest == pytest.approx([stats.low, stats.high])
            assert widest[0] - 1e-6 <= low < high <= widest[1] + 1e-6, (method, name)


def test_calibration_computes_channel_means() -> None:
    images = crops(9)
    calibration = Calibration(small_network(), images)
    expected = np.concatenate(list(images.batches())).mean((0, 2, 3))
    assert calibration.activation_stats["pixels"].channel_means == pytest.approx(expected, abs=1e-4)


def test_calibration_accepts_values_without_channels() -> None:
    statistics = ActivationStats()
    statistics.add(np.float32([1, 3]))
    statistics.add(np.array(-2, np.float32))
    assert (statistics.low, statistics.high) == (-2.0, 3.0)
    assert statistics.channel_means == pytest.approx(2 / 3)


# --- rewrites and equalization


def test_rewritten_operators_give_equal_logits() -> None:
    rewritten = rewrite_operators(small_network())
    operators = {node.op_type for node in rewritten.graph.node}
    assert {"HardSwish", "HardSigmoid", "ReduceMean"} <= {
        node.op_type for node in small_network().graph.node
    }
    assert not {"HardSwish", "HardSigmoid", "ReduceMean"} & operators
    assert max_logit_difference(small_network(), rewritten) < 1e-5


def test_equalize_balances_weights_and_keeps_logits() -> None:
    unbalanced = _unbalanced_network()
    equalized = equalize(unbalanced)
    assert equalized is not None
    assert max_logit_difference(unbalanced, equalized) < 1e-4

    def spread(network: onnx.ModelProto) -> float:
        first = next(find_layers(network))
        peaks = np.abs(first.weight).reshape(len(first.weight), -1).max(1)
        return float(peaks.max() / peaks.min())

    assert spread(equalized) < spread(unbalanced) / 5


def test_equalize_returns_none_without_layer_pairs() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.SiLU(),
        nn.Conv2d(4, 4, 1),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(4 * SIDE * SIDE, CLASSES),
    )
    assert equalize(export_network_graph(network.eval(), SIDE, CLASSES, 18).model) is None


def _unbalanced_network() -> onnx.ModelProto:
    """Return an equivalent network whose first layers have channels that differ by up to 100."""
    layers = {layer.name: layer for layer in find_layers(small_network())}
    first, second = list(layers.values())[:2]
    factor = np.logspace(-1, 1, 8).astype(np.float32)
    return with_constants(
        small_network(),
        {
            first.node.input[1]: first.weight * factor[:, None, None, None],
            first.node.input[2]: first.bias * factor if first.bias is not None else factor,
            second.node.input[1]: second.weight / factor[:, None, None, None],
        },
    )


# --- quantization


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, (3, 4, 2, 2), elements=st.floats(-100, 100, width=32)),
    st.booleans(),
    st.sampled_from([7, 8]),
)
def test_weight_rounding_is_at_most_half_a_step(weight: Any, per_channel: bool, bits: int) -> None:
    peak = np.abs(weight).max(axis=(1, 2, 3) if per_channel else None, keepdims=True)
    step = np.maximum(peak, 1e-12) / {8: 127, 7: 64}[bits]
    error = np.abs(fake_quantize_weight(weight, per_channel, bits) - weight)
    assert (error <= 0.5001 * step + 1e-9).all()


@pytest.mark.parametrize("scheme", all_schemes(has_vnni=False), ids=lambda scheme: scheme.name)
def test_every_scheme_gives_valid_and_accurate_network(scheme: QuantizationScheme) -> None:
    rewritten = rewrite_operators(small_network())
    quantized = quantize(rewritten, Calibration(rewritten, crops(20)).ranges(scheme.method), scheme)
    onnx.checker.check_model(quantized, full_check=True)
    operators = [node.op_type for node in quantized.graph.node]
    assert operators.count("QuantizeLinear") >= 6
    reference = compute_logits(small_network(), crops(20))
    assert sqnr_db(reference, compute_logits(quantized, crops(20))) > 8
    names = [value.name for value in quantized.graph.initializer]
    contents = [
        (value.data_type, tuple(value.dims), numpy_helper.to_array(value).tobytes())
        for value in quantized.graph.initializer
    ]
    assert len(set(names)) == len(names)
    assert len(set(contents)) == len(contents), "equal constants must be shared"


def test_quantize_is_deterministic_and_skips_excluded_layers() -> None:
    ranges = Calibration(small_network(), crops(20)).ranges("minmax")
    excluded = next(find_layers(small_network())).name
    quantized = quantize(small_network(), ranges, PER_CHANNEL, [excluded])
    node = next(node for node in quantized.graph.node if node.name == excluded)
    assert node.input[1] in {layer.node.input[1] for layer in find_layers(small_network())}
    again = quantize(small_network(), ranges, PER_CHANNEL, [excluded])
    assert quantized.SerializeToString(deterministic=True) == again.SerializeToString(
        deterministic=True
    )


def test_layers_by_error_ranks_coarse_layer_first() -> None:
    target = list(find_layers(small_network()))[3]
    weight = target.weight.copy()
    weight[0] *= 300  # one channel sets the step for all others
    network = with_constants(small_network(), {target.node.input[1]: weight})
    ranges = Calibration(network, crops(20)).ranges("minmax")
    order = layers_by_error(network, ranges, PER_TENSOR, crops(20))
    assert sorted(order) == sorted(layer.name for layer in find_layers(network))

    def relative_error(name: str) -> float:
        layer = next(layer for layer in find_layers(network) if layer.name == name)
        error = fake_quantize_weight(layer.weight, False, 7) - layer.weight
        return float(np.abs(error).mean() / np.abs(layer.weight).mean())

    assert relative_error(order[0]) >= max(relative_error(name) for name in order) * 0.2


def test_bias_correction_restores_output_means() -> None:
    target = list(find_layers(small_network()))[2]
    images = crops(30)
    calibration = Calibration(small_network(), images)
    corrected = correct_biases(small_network(), calibration, PER_TENSOR)
    layer = next(layer for layer in find_layers(corrected) if layer.name == target.name)
    error = (fake_quantize_weight(target.weight, False, 7) - target.weight).reshape(8, 8)
    means = calibration.activation_stats[target.node.input[0]].channel_means
    assert layer.bias is not None
    assert target.bias is not None
    # The mean output with rounded weights and the new bias equals that of the float layer.
    assert error @ means + layer.bias == pytest.approx(target.bias, abs=1e-5)


# --- the int8 search


def test_search_records_all_candidates_and_chooses_fitting(
    task: QuantizationTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Slow schemes are skipped, but latencies of so small a network are noise.
    monkeypatch.setattr(_Int8Search, "_is_hopeless", lambda self, scheme: False)
    quantized = quantize_static_int8(task)
    record = quantized.search
    assert isinstance(record, SearchRecord)
    schemes = [
        candidate.scheme
        for candidate in record.candidates
        if not candidate.repairs and not candidate.restored_layers
    ]
    assert len(schemes) == 12
    assert {(scheme.method, scheme.per_channel, scheme.activations) for scheme in schemes} == {
        (method, per_channel, activations)
        for method in CALIBRATION_METHODS
        for per_channel in (True, False)
        for activations in ("uint8", "int8")
    }
    for candidate in record.candidates:
        assert candidate.score.ms > 0
        assert candidate.score.bytes > 0
        assert candidate.score.top1 is not None
    fits = record.chosen.score.drop <= task.max_accuracy_drop
    assert quantized.is_within_limit is record.is_within_limit is fits
    assert (record.calibration_images, record.held_out_images) == (40, 30)
    dimensions = {value.name: len(value.dims) for value in quantized.network.graph.initializer}
    low_rank_nodes = [
        node
        for node in quantized.network.graph.node
        if node.op_type == "DequantizeLinear" and dimensions.get(node.input[0], 2) < 2
    ]
    assert low_rank_nodes
    assert all(
        [entry.i for entry in node.attribute if entry.name == "axis"] == [0]
        for node in low_rank_nodes
    ), "OpenCV rejects the default"


class HarshScorer(CandidateScorer):
    """Scorer with an accuracy drop of 50 points, minus 5 for each layer in float."""

    def score(self, network: onnx.ModelProto) -> QuantizationScore:
        floats = sum(
            node.op_type in ("Conv", "Gemm") and not _is_quantized(network, node)
            for node in network.graph.node
        )
        return QuantizationScore(0.5, 50.0 - 5 * floats, 10.0, 1.0, 1)


def _is_quantized(network: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    producers = {
        name: producer.op_type for producer in network.graph.node for name in producer.output
    }
    return producers.get(node.input[1]) == "DequantizeLinear"


@pytest.mark.parametrize(("limit", "fits"), [(45.0, True), (41.0, True), (1.0, False)])
def test_search_applies_repairs_in_order_until_limit_is_met(
    task: QuantizationTask, monkeypatch: pytest.MonkeyPatch, limit: float, fits: bool
) -> None:
    monkeypatch.setattr(search, "CandidateScorer", HarshScorer)
    quantized = quantize_static_int8(replace(task, max_accuracy_drop=limit))
    repaired = quantized.search.candidates[12:]
    assert [candidate.repairs[-1] for candidate in repaired[:4]] == [
        "bias correction",
        "GPTQ",
        "activations in float",
        "cross-layer equalisation",
    ]
    restored = [len(candidate.restored_layers) for candidate in repaired[4:]]
    assert quantized.search.worst_layers[: restored[-1]] == repaired[-1].restored_layers
    assert restored == {45.0: [1], 41.0: [1, 2], 1.0: [1, 2, 3]}[limit], (
        "at most half of the six layers"
    )
    assert quantized.is_within_limit is fits


@pytest.mark.parametrize(
    ("mode", "drop", "ms", "scheme_count", "fits"),
    [
        ("auto", 0.5, 0.5, 2, True),
        ("auto", 5.0, 0.5, 12, False),
        ("auto", 0.5, 1.5, 12, True),
        ("quick", 5.0, 1.5, 2, False),
        ("thorough", 0.5, 0.5, 12, True),
    ],
)
def test_search_goes_on_when_quick_result_is_not_useful(
    task: QuantizationTask,
    monkeypatch: pytest.MonkeyPatch,
    mode: SearchMode,
    drop: float,
    ms: float,
    scheme_count: int,
    fits: bool,
) -> None:
    class FixedScorer(CandidateScorer):
        def score(self, network: onnx.ModelProto) -> QuantizationScore:
            if any(node.op_type == "DequantizeLinear" for node in network.graph.node):
                return QuantizationScore(0.5, drop, 10.0, ms, 1)
            return QuantizationScore(0.5, 0.0, 100.0, 1.0, 4)

    monkeypatch.setattr(search, "CandidateScorer", FixedScorer)
    record = quantize_static_int8(replace(task, search=mode)).search
    plain = [
        candidate.scheme
        for candidate in record.candidates
        if not candidate.repairs and not candidate.restored_layers
    ]
    assert len(plain) == len(set(plain)) == scheme_count
    assert record.is_within_limit is fits
    repairs = {candidate.repairs[-1] for candidate in record.candidates if candidate.repairs}
    goes_to_repairs = mode != "quick" and not fits
    assert ("activations in float" in repairs) is goes_to_repairs


def test_best_refinement_is_kept(task: QuantizationTask) -> None:
    record = quantize_static_int8(replace(task, max_accuracy_drop=100.0)).search
    plain, refined = record.candidates[:12], record.candidates[12:]
    assert [candidate.repairs for candidate in refined] == [
        ("bias correction",),
        ("GPTQ",),
    ], "no other repair is needed"
    scheme = record.chosen.scheme
    same_scheme = [item for item in plain if item.scheme == scheme]
    best = min((*same_scheme, *refined), key=lambda item: (item.score.drop, -item.score.sqnr_db))
    assert record.chosen == best


def test_quick_search_leaves_out_gptq(task: QuantizationTask) -> None:
    record = quantize_static_int8(replace(task, search="quick")).search
    assert "GPTQ" not in {repair for candidate in record.candidates for repair in candidate.repairs}


def test_unsupported_operators_stay_in_float() -> None:
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
    quantized = quantize(model, Calibration(model, crops(20)).ranges("minmax"), PER_CHANNEL)
    assert "Erf" in {node.op_type for node in quantized.graph.node}
    assert all(
        _is_quantized(quantized, node) for node in quantized.graph.node if node.op_type == "Conv"
    )
    times = operator_times(quantized)
    assert times["Erf"].nodes == 1
    assert sum(time.share for time in times.values()) == pytest.approx(1)


def test_slowest_operators_text_omits_int8_compute() -> None:
    shares = {"QLinearConv": 0.5, "HardSwish": 0.3, "QLinearMul": 0.19, "Softmax": 0.01}
    text = slowest_operators_text(
        {operator: OperatorTime(2, share) for operator, share in shares.items()}
    )
    assert (
        text
        == "HardSwish (2 nodes, 30% of the time, in float), QLinearMul (2 nodes, 19% of the time)"
    )


def test_logits_are_not_rounded_after_convolutional_head() -> None:
    torch.manual_seed(0)
    head = (nn.Conv2d(8, CLASSES, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    nn.init.constant_(head[0].bias, 1.0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *head)
    model = rewrite_operators(
        onnx.shape_inference.infer_shapes(
            export_network_graph(network.eval(), SIDE, CLASSES, 18).model
        )
    )
    quantized = quantize(model, Calibration(model, crops(20)).ranges("minmax"), PER_CHANNEL)
    assert all(
        _is_quantized(quantized, node) for node in quantized.graph.node if node.op_type == "Conv"
    )
    logits = compute_logits(quantized, crops(40))
    assert len(np.unique(logits)) > 0.9 * logits.size, "8 bits would give equal values"


def test_score_caches_latency(task: QuantizationTask, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = CandidateScorer(task.network, task.images.held_out)
    first = scorer.score(task.network)
    monkeypatch.setattr(
        "edgetl.export.quantize.scoring._measure_latency_ms", lambda session, images: 1e9
    )
    assert scorer.score(task.network) == first


def test_first_noisy_module_is_named(task: QuantizationTask) -> None:
    pixels = next(crops(4).batches())
    wrong = {
        layer.node.input[1]: -layer.weight
        for layer in find_layers(task.network)
        if layer.name == list(find_layers(task.network))[1].name
    }
    text = describe_first_noisy_module(
        task.network, with_constants(task.network, wrong), task.module_outputs, pixels
    )
    assert text.startswith("The first module that is lost in noise is second:")
    assert "No single module" in describe_first_noisy_module(
        task.network, task.network, task.module_outputs, pixels
    )
    half: QuantizedModel = load_from_registry(QUANTIZERS, "fp16", "variant")(task)
    assert "No single module" in describe_first_noisy_module(
        task.network, half.network, task.module_outputs, pixels
    ), "the conversion must keep the names"
    quantized = quantize(
        rewrite_operators(task.network),
        Calibration(rewrite_operators(task.network), crops(20)).ranges("minmax"),
        PER_CHANNEL,
    )
    assert "No single module" in describe_first_noisy_module(
        task.network, quantized, task.module_outputs, pixels
    ), "the quantizer may replace ReLU by rounding"
    infinite = {
        layer.node.input[1]: np.full_like(layer.weight, 3e38)
        for layer in list(find_layers(task.network))[2:3]
    }
    assert "no longer finite is third" in describe_first_noisy_module(
        task.network, with_constants(task.network, infinite), task.module_outputs, pixels
    )


def test_quantizer_failure_is_an_export_error(
    task: QuantizationTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "edgetl.export.quantize.qdq.QDQQuantizer.quantize_model", lambda self: 1 / 0
    )
    with pytest.raises(
        ExportError, match=r"quantizer does not support this network .*division by zero"
    ):
        quantize_static_int8(task)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flags\t\t: fpu avx2 avx512_vnni", True),
        ("flags\t\t: fpu avx2 avx512f", False),
        ("flags\t\t: avx_vnni", True),
        ("Features\t: fp asimd asimddp", True),
        ("Features\t: fp asimd", False),
        ("", False),
    ],
)
def test_int8_dot_product_is_read_from_cpuinfo(tmp_path: Path, line: str, expected: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\n")
    assert has_int8_dot_product(tmp_path) is expected
    assert has_int8_dot_product(tmp_path / "nowhere") is False
    assert all(scheme.reduce_range is not expected for scheme in all_schemes(expected))


# --- the other variants


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_variant_is_valid_and_accurate(task: QuantizationTask, name: str) -> None:
    quantized: QuantizedModel = load_from_registry(QUANTIZERS, name, "variant")(task)
    onnx.checker.check_model(quantized.network, full_check=True)
    assert [value.name for value in quantized.network.graph.input] == ["pixels"]
    assert quantized.network.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    images = crops(20)
    assert sqnr_db(
        compute_logits(task.network, images), compute_logits(quantized.network, images)
    ) > {"fp16": 40}.get(name, 8)
    again: QuantizedModel = load_from_registry(QUANTIZERS, name, "variant")(task)
    if name != "int8":  # the int8 search depends on measured latencies
        assert again.network.SerializeToString(
            deterministic=True
        ) == quantized.network.SerializeToString(deterministic=True)


def test_int8_variants_have_a_quarter_of_the_size() -> None:
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
        quantized: QuantizedModel = load_from_registry(QUANTIZERS, name, "variant")(task)
        assert quantized.network.ByteSize() < model.ByteSize() / 3.5, name


@pytest.mark.parametrize("kind", ["activation", "weight"])
def test_fp16_refuses_overflow(task: QuantizationTask, kind: str) -> None:
    first = next(find_layers(task.network))
    if kind == "activation":
        constants = {first.node.input[1]: first.weight * 1e5}
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
        constants = {first.node.input[1]: weight}
        message = "fp16 would overflow: the weights"
    network = onnx.shape_inference.infer_shapes(with_constants(task.network, constants))
    with pytest.raises(ExportError, match=message):
        load_from_registry(QUANTIZERS, "fp16", "variant")(replace(task, network=network))


@given(arrays(np.float64, 20, elements=st.floats(-5, 5)), st.floats(0.001, 0.5))
def test_sqnr_falls_by_six_db_when_noise_doubles(signal: Any, noise: float) -> None:
    signal = signal + 1.0
    once = sqnr_db(signal, signal + noise)
    assert once - sqnr_db(signal, signal + 2 * noise) == pytest.approx(6.02, abs=0.01)
    assert sqnr_db(signal, signal) == 200.0
