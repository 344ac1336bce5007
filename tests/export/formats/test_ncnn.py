"""Conversion to ncnn keeps all outputs, and int8 keeps the accuracy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from edgetl.core.artifacts.model_metadata import ModelMetadata
from edgetl.core.errors import ExportError
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.runtime.session import create_session
from edgetl.device.runtime.sessions.session import SessionSource, open_session
from edgetl.export.confidence.confidence import Confidence
from edgetl.export.confidence.unknown import Activations, UnknownModel, fit_scores
from edgetl.export.formats.ncnn_model import (
    NcnnLayer,
    quantize_weights,
    read_layers,
    read_weights,
    weight_scales,
    write_param,
    write_weights,
)
from edgetl.export.formats.task import ConversionTask, ConvertedFile, OnnxNetwork
from edgetl.export.graph.assemble import assemble
from edgetl.export.graph.torch_export import export_network_graph
from edgetl.export.quantize.images import CroppedImages, QuantizationImages
from edgetl.export.quantize.scoring import sqnr_db

ncnn = pytest.importorskip("ncnn")
from edgetl.export.formats.ncnn_int8 import (  # noqa: E402
    MagnitudeHistogram,
    collect_histograms,
    quantize_layers,
)
from tests.helpers.ncnn_models import (  # noqa: E402
    CLASSES,
    SIDE,
    SmallNetwork,
    compute_logits,
    make_pixels,
    write_small_model,
)

PREPROCESSING = Preprocessing(SIDE, SIDE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def make_images(count: int, seed: int) -> CroppedImages:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
    return CroppedImages(pixels, None, PREPROCESSING)


def test_written_weights_are_read_back(tmp_path: Path) -> None:
    network, (param, weights) = write_small_model(tmp_path)

    layers = read_weights(read_layers(param), weights.read_bytes())

    first = next(layer for layer in layers if layer.name == "first")
    assert first.weights is not None
    assert (first.weights == network.first.weight.detach().numpy().ravel()).all()
    write_weights(tmp_path / "copy.bin", layers)
    write_param(tmp_path / "copy.param", layers)
    assert (tmp_path / "copy.bin").read_bytes() == weights.read_bytes()
    assert (tmp_path / "copy.param").read_text() == param.read_text()


def test_constants_of_an_unknown_layer_are_refused(tmp_path: Path) -> None:
    _, (param, weights) = write_small_model(tmp_path)
    layers = [*read_layers(param), NcnnLayer("Gemm", "gemm", ("logits",), ("product",))]

    with pytest.raises(ExportError, match="Gemm"):
        read_weights(layers, weights.read_bytes() + bytes(400))


def test_weights_are_rounded_to_the_nearest_code() -> None:
    rows = np.array([[1.0, -0.5, 0.26], [0.0, 0.0, 0.0]], np.float32)

    scales = weight_scales(rows)

    assert scales.tolist() == [127.0, 0.0]
    assert quantize_weights(rows, scales).tolist() == [[127, -64, 33], [0, 0, 0]]


def test_histogram_doubles_its_range_without_losing_counts() -> None:
    values = np.random.default_rng(0).normal(0, 1, 4000).astype(np.float32)
    histogram = MagnitudeHistogram()

    for part in np.array_split(values[np.argsort(np.abs(values))], 7):
        histogram.add(part)

    expected = np.histogram(np.abs(values), len(histogram.counts), (0, histogram.limit))[0]
    assert histogram.largest == np.abs(values).max()
    assert histogram.counts.sum() == len(values)
    assert np.abs(np.cumsum(histogram.counts) - np.cumsum(expected)).max() <= 2


def test_range_of_least_error_leaves_out_an_outlier() -> None:
    histogram = MagnitudeHistogram()
    for seed in range(20):
        histogram.add(np.random.default_rng(seed).random(15_000).astype(np.float32))
    histogram.add(np.array([3.0], np.float32))

    assert histogram.choose_range("largest value") == pytest.approx(3)
    assert 0.9 < histogram.choose_range("smallest squared error") < 1.4


def test_int8_is_written_only_between_int8_convolutions(tmp_path: Path) -> None:
    _, (param, weights) = write_small_model(tmp_path)
    layers = read_weights(read_layers(param), weights.read_bytes())
    ranges = {layer.bottoms[0]: 2.0 for layer in layers if layer.weights is not None}

    quantized = {
        layer.name: layer.scales
        for layer in quantize_layers(layers, {"first", "depthwise", "classifier"}, ranges)
    }

    assert quantized["first"] is not None
    assert quantized["depthwise"] is not None
    assert quantized["first"].top == pytest.approx(127 / 2)
    assert quantized["depthwise"].top is None  # a float convolution takes it
    assert quantized["pointwise"] is None


@pytest.mark.parametrize("names", [("first", "pointwise"), ("first", "depthwise", "pointwise")])
def test_int8_model_keeps_the_logits(tmp_path: Path, names: tuple[str, ...]) -> None:
    network, files = write_small_model(tmp_path)
    layers = read_weights(read_layers(files[0]), files[1].read_bytes())
    inputs = [layer.bottoms[0] for layer in layers if layer.weights is not None]
    histograms = collect_histograms(files, inputs, make_images(40, 0))
    ranges = {name: item.choose_range("largest value") for name, item in histograms.items()}
    int8_files = (tmp_path / "int8.param", tmp_path / "int8.bin")
    quantized = quantize_layers(layers, {*names, "classifier"}, ranges)
    write_param(int8_files[0], quantized)
    write_weights(int8_files[1], quantized)

    session = open_session("ncnn", SessionSource(int8_files, 1, SIDE, "int8"))
    pixels = next(make_images(16, 1).batches())
    logits = session.run(["logits"], pixels)[0]

    assert 20 < sqnr_db(compute_logits(network, pixels), logits) < 60
    assert session.describe().precision_shares["int8"] == (len(names) + 1) / 4
    assert int8_files[1].stat().st_size < files[1].stat().st_size


@pytest.mark.parametrize("neighbors", [1, 2, 5])
def test_score_layers_average_the_nearest_neighbors(tmp_path: Path, neighbors: int) -> None:
    formats = pytest.importorskip("edgetl.export.formats.ncnn", exc_type=ImportError)
    layers = [
        NcnnLayer("Input", "distances", (), ("unknown_nearness",)),
        NcnnLayer("Input", "rest", (), ("unknown_rest",)),
        *formats.score_layers(neighbors),
    ]
    write_param(tmp_path / "score.param", layers)
    (tmp_path / "score.bin").write_bytes(b"")
    net = ncnn.Net()
    net.load_param(str(tmp_path / "score.param"))
    net.load_model(str(tmp_path / "score.bin"))
    distances = np.random.default_rng(0).normal(0, 3, 200).astype(np.float32)

    with net.create_extractor() as extractor:
        rest, nearness = np.array([0.25], np.float32), -distances
        extractor.input("unknown_rest", ncnn.Mat(rest))
        extractor.input("unknown_nearness", ncnn.Mat(nearness))
        score = np.array(extractor.extract("unknown_score")[1])

    expected = 0.25 + np.sort(distances)[:neighbors].mean()
    assert score == pytest.approx([expected], abs=1e-5)


class WideNetwork(SmallNetwork):
    """The small network with enough features for a bank of neighbors."""

    def __init__(self) -> None:
        super().__init__()
        self.pointwise = nn.Conv2d(8, 40, 1)
        self.classifier = nn.Linear(40, CLASSES)


def compute_activations(module: WideNetwork, seed: int) -> Activations:
    features: list[torch.Tensor] = []
    hook = module.classifier.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    logits = compute_logits(module, make_pixels(120, seed))
    hook.remove()
    return Activations(features[0].numpy(), logits)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> ConversionTask:
    pytest.importorskip("pnnx")
    module = WideNetwork().eval()
    network = export_network_graph(module, SIDE, CLASSES, 18).model
    scores = fit_scores(compute_activations(module, 1), compute_activations(module, 2), 10**6)
    confidence = Confidence(unknown_model=UnknownModel(scores["knn+energy"], {}))
    metadata = ModelMetadata(("a", "b", "c"), PREPROCESSING, "tensor", "run")

    def add_outputs(graph: onnx.ModelProto) -> OnnxNetwork:
        model = assemble(graph, PREPROCESSING, "tensor", metadata, confidence=confidence)
        return OnnxNetwork(graph, model, confidence)

    return ConversionTask(
        module=module,
        float32=add_outputs(network),
        int8=None,
        wants_int8=True,
        assemble=add_outputs,
        crop=SIDE,
        load_images=lambda: QuantizationImages(make_images(60, 0), make_images(30, 1)),
        max_accuracy_drop=1.0,
        folder=tmp_path_factory.mktemp("converted"),
        notify=lambda step, done, total: None,
    )


@pytest.fixture(scope="module")
def converted(task: ConversionTask) -> dict[str, ConvertedFile]:
    from edgetl.export.formats.ncnn import convert_to_ncnn

    return {file.name: file for file in convert_to_ncnn(task)}


OUTPUTS = ("logits", "probabilities", "unknown_score")


def run_onnx(task: ConversionTask, pixels: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    session = create_session(task.float32.model.SerializeToString())
    outputs: list[NDArray[np.float32]] = session.run(OUTPUTS, {"pixels": pixels})
    return outputs


def test_converted_files_compute_the_outputs_of_onnx(
    task: ConversionTask, converted: dict[str, ConvertedFile]
) -> None:
    pixels = make_pixels(20, 5)
    fp32 = converted["ncnn-fp32"]

    session = open_session("ncnn", SessionSource(fp32.files, 1, SIDE))
    outputs = session.run(OUTPUTS, pixels)

    assert set(session.output_names) == set(OUTPUTS)
    # The score of this network is a difference of large values, which float32 rounds to 0.001.
    tolerances = (1e-5, 1e-5, 0.01)
    expected = run_onnx(task, pixels)
    assert [output.shape for output in outputs] == [output.shape for output in expected]
    for output, other, tolerance in zip(outputs, expected, tolerances, strict=True):
        assert np.abs(output - other).max() < tolerance


def test_files_are_written_to_a_relative_folder(
    task: ConversionTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgetl.export.formats.ncnn import convert_to_ncnn

    (tmp_path / "bundle").mkdir()
    monkeypatch.chdir(tmp_path)

    convert_to_ncnn(replace(task, folder=Path("bundle"), wants_int8=False))

    assert sorted(path.name for path in Path("bundle").iterdir()) == [
        "ncnn-fp32.bin",
        "ncnn-fp32.param",
    ]


def test_bfloat16_shares_the_files_of_float32(converted: dict[str, ConvertedFile]) -> None:
    assert converted["ncnn-bf16"].files == converted["ncnn-fp32"].files
    assert converted["ncnn-bf16"].precision == "bf16"


def test_int8_keeps_logits_and_unknown_scores(
    task: ConversionTask, converted: dict[str, ConvertedFile]
) -> None:
    pixels = np.concatenate(list(make_images(20, 7).batches()))
    int8 = converted["ncnn-int8"]

    session = open_session("ncnn", SessionSource(int8.files, 1, SIDE, "int8"))
    logits, _, scores = session.run(OUTPUTS, pixels)

    expected_logits, _, expected_scores = run_onnx(task, pixels)
    assert sqnr_db(expected_logits, logits) > 25
    assert np.abs(scores - expected_scores).max() < 0.3
    assert session.describe().precision_shares == {"int8": 0.75, "fp32": 0.25}
    assert "int8 weights by channel" in str(int8.method)


def test_network_without_layers_of_ncnn_is_refused(task: ConversionTask, tmp_path: Path) -> None:
    from edgetl.export.formats.ncnn import convert_to_ncnn

    model = onnx.ModelProto()
    model.CopyFrom(task.float32.network)
    model.graph.node[0].op_type = "Bernoulli"
    broken = replace(task, float32=OnnxNetwork(model, model, Confidence()), folder=tmp_path)

    with pytest.raises(ExportError, match="pnnx"):
        convert_to_ncnn(broken)
