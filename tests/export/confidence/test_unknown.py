"""Scores of unknown images: choice, scale and the graph that computes them."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetl.export.confidence.unknown import (
    Activations,
    FeatureBank,
    LabeledActivations,
    choose_model,
    fit_scores,
)
from edgetl.export.graph.confidence import UNKNOWN_SCORE, append_unknown_score
from edgetl.export.graph.features import FEATURES, INTERMEDIATE_FEATURES, append_features

CLASSES, WIDTH, PARAMETERS = 4, 40, 2_000_000
METHODS = ("knn", "knn+energy+intermediate", "energy", "max_logit")


def _activations(count: int, seed: int, shift: float = 0.0, classes: int = CLASSES):
    """Draw features around a center for each class; `shift` moves them away from all classes."""
    centers = np.random.default_rng(7).normal(0, 1, (CLASSES + 1, WIDTH))
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    features = centers[labels] + shift * centers[-1] * 3
    features = np.maximum(features + generator.normal(0, 0.5, (count, WIDTH)), 0)
    logits = features @ centers[:classes].T
    # Values in front of the last layers: the features and noise that these suppress.
    noise = generator.normal(5, 1, (count, WIDTH // 2))
    intermediate = np.concatenate([features + 1, noise], 1)
    return LabeledActivations(Activations(features, logits, intermediate), labels)


@pytest.fixture(scope="module")
def scores():
    train, validation = _activations(200, 0), _activations(120, 1)
    return fit_scores(train.activations, validation.activations, PARAMETERS)


@pytest.mark.parametrize("method", METHODS)
def test_score_accepts_the_share_of_known_images(scores, method):
    validation = scores[method].compute(_activations(120, 1).activations)
    assert np.median(validation) == pytest.approx(0, abs=1e-9)
    assert (validation > 1).sum() == 5  # 120 - ceil(0.95 x 121)


def test_score_accepts_95_percent_of_new_images():
    rejected = []
    train = _activations(200, 0).activations
    for seed in range(40):
        validation = _activations(100, 1000 + seed).activations
        new = _activations(400, 2000 + seed).activations
        score = fit_scores(train, validation, PARAMETERS)["knn"]
        rejected.append((score.compute(new) > 1).mean())
    assert 0.03 < np.mean(rejected) < 0.06


def test_distance_catches_images_of_no_class(scores):
    unknown = _activations(100, 2, shift=1.0).activations
    assert (scores["knn"].compute(unknown) > 1).mean() > 0.95


def test_choose_model_takes_the_best_method():
    train, validation = _activations(200, 0), _activations(120, 1)
    unknown = {"generated": _activations(60, 2, shift=1.0).activations}
    model, record = choose_model(train, validation, unknown, PARAMETERS)
    method = model.score.method
    assert record.detector.method == method
    assert record.candidates[method] == max(record.candidates.values())
    assert set(record.figures) == {"generated", "left_out_class"}
    areas = [figures.auroc for figures in record.figures.values()]
    assert np.mean(areas) == pytest.approx(record.candidates[method])
    for figures in record.figures.values():
        assert figures.auroc_interval[0] <= figures.auroc <= figures.auroc_interval[1]
        assert figures.caught_interval[0] <= figures.caught <= figures.caught_interval[1]
    assert record.images == 120
    assert record.figures["left_out_class"].images == 120


def test_model_is_scaled_to_another_variant():
    train, validation = _activations(200, 0), _activations(120, 1)
    unknown = {"generated": _activations(60, 2, shift=1.0).activations}
    model, record = choose_model(train, validation, unknown, PARAMETERS)
    scaled = model.scale_to(validation)
    assert scaled.measure(validation, unknown) == record.figures
    other = _activations(80, 9)
    scores = model.scale_to(other).score.compute(other.activations)
    assert (scores > 1).sum() == 3  # 80 - ceil(0.95 x 81)


def test_choose_model_uses_logits_without_features():
    def strip(images: LabeledActivations) -> LabeledActivations:
        empty = np.empty((len(images.labels), 0))
        return LabeledActivations(Activations(empty, images.activations.logits), images.labels)

    train, validation = strip(_activations(200, 0)), strip(_activations(120, 1))
    unknown = {"generated": strip(_activations(60, 2, shift=1.0)).activations}
    model, _ = choose_model(train, validation, unknown, PARAMETERS)
    assert model.score.method in ("energy", "max_logit")
    assert model.score.bank is None


def test_bank_is_close_to_exact_distances():
    train, new = _activations(150, 0).activations, _activations(30, 3).activations
    bank = FeatureBank.fit(train.features, PARAMETERS)
    unit = train.features / np.linalg.norm(train.features, axis=1, keepdims=True)
    centered = unit - unit.mean(0)
    covariance = centered.T @ centered / len(unit)
    shrunk = covariance + 3.0 * np.trace(covariance) / WIDTH * np.eye(WIDTH)
    query = new.features / np.linalg.norm(new.features, axis=1, keepdims=True)
    inverse = np.linalg.inv(shrunk)
    gaps = query[:, None] - unit
    squares = np.einsum("qbi,ij,qbj->qb", gaps, inverse, gaps)
    expected = np.sort(squares, 1)[:, :5].mean(1)
    # Features have 40 dimensions, all of which are kept: only int8 rounding remains.
    np.testing.assert_allclose(bank.distances(new.features), expected, rtol=0.05, atol=0.1)


@pytest.mark.parametrize(("images", "width"), [(2, 40), (30, 40), (60, 40), (300, 3), (20, 1)])
def test_bank_takes_any_number_of_images_and_features(images, width):
    generator = np.random.default_rng(0)
    bank = FeatureBank.fit(generator.random((images, width)), PARAMETERS)
    distances = bank.distances(generator.random((5, width)))
    assert distances.shape == (5,)
    assert np.isfinite(distances).all()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_bank_of_equal_features_is_finite(value):
    bank = FeatureBank.fit(np.full((30, 8), value), PARAMETERS)
    assert np.isfinite(bank.distances(np.full((2, 8), value))).all()


def test_bank_size_is_a_share_of_the_network():
    features = np.random.default_rng(0).random((900, 600))
    for parameters in (400_000, 2_000_000):
        bank = FeatureBank.fit(features, parameters)
        assert bank.space.projection.nbytes + bank.bank.nbytes <= 0.075 * parameters


def _network(nodes, constants, feature_shape):
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", *feature_shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _linear_network():
    weight = np.random.default_rng(7).normal(0, 1, (CLASSES + 1, WIDTH))[:CLASSES]
    nodes = [helper.make_node("Gemm", ["pixels", "weight"], ["logits"], transB=1)]
    return _network(nodes, {"weight": weight.astype(np.float32)}, [WIDTH])


@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize("method", METHODS)
def test_graph_computes_the_score(scores, method, shift):
    model = _linear_network()
    assert append_features(model)
    shape = ["batch", WIDTH + WIDTH // 2]
    model.graph.input.append(
        helper.make_tensor_value_info(INTERMEDIATE_FEATURES, TensorProto.FLOAT, shape)
    )
    append_unknown_score(model, scores[method])
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    images = _activations(50, 5, shift).activations
    # A dead network, whose features are all zero, must not give NaN.
    features, intermediate = (
        np.vstack([values, np.zeros((1, values.shape[1]))]).astype(np.float32)
        for values in (images.features, images.intermediate)
    )
    inputs = {"pixels": features, INTERMEDIATE_FEATURES: intermediate}
    logits, values = session.run(["logits", UNKNOWN_SCORE], inputs)
    assert values.shape == (51,)
    activations = Activations(*(part.astype(float) for part in (features, logits, intermediate)))
    np.testing.assert_allclose(values, scores[method].compute(activations), rtol=1e-3, atol=3e-3)
    inputs = {name: value[3:4] for name, value in inputs.items()}
    single = session.run([UNKNOWN_SCORE], inputs)[0]
    np.testing.assert_allclose(single, values[3:4], atol=1e-3)


def test_intermediate_features_count_only_beyond_known_images(scores):
    score = scores["knn+energy+intermediate"]
    validation, far = _activations(120, 1), _activations(50, 6, shift=1.0)
    excess = score.intermediate.compute(validation.activations.intermediate)
    assert (excess > 0).mean() == pytest.approx(0.05, abs=0.01)
    assert (score.intermediate.compute(far.activations.intermediate) > 0).all()


def test_score_without_intermediate_features_is_scaled_again(scores):
    validation = _activations(120, 1).activations
    score = scores["knn+energy+intermediate"].without_intermediate().scale_to(validation)
    assert score.method == "knn+energy"
    alone = replace(validation, intermediate=None)
    assert (score.compute(alone) > 1).sum() == 5
    assert score.compute(alone) == pytest.approx(
        fit_scores(replace(_activations(200, 0).activations, intermediate=None), alone, PARAMETERS)[
            "knn+energy"
        ].compute(alone)
    )


def test_graph_has_only_what_other_runtimes_compute(scores):
    """OpenVINO computes products of int8 constants wrongly; OpenCV 4 and 5 refuse other nodes."""
    model = _linear_network()
    append_features(model)
    append_unknown_score(model, scores["knn+energy+intermediate"])
    constants = {value.name for value in model.graph.initializer}
    for node in model.graph.node:
        if constants.issuperset(node.input):
            assert node.op_type == "Cast"
            constants.update(node.output)
    (top,) = (node for node in model.graph.node if node.op_type == "TopK")
    assert {item.name: item.i for item in top.attribute}["sorted"] == 1


def test_features_of_convolutional_classifiers_are_averaged():
    weight = np.random.default_rng(0).normal(0, 1, (CLASSES, 6, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["pixels", "weight"], ["map"]),
        helper.make_node("Relu", ["map"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"], axis=1),
    ]
    model = _network(nodes, {"weight": weight}, [6, 3, 3])
    assert append_features(model)
    model.graph.output.append(helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    pixels = np.random.default_rng(1).random((2, 6, 3, 3), np.float32)
    features = session.run([FEATURES], {"pixels": pixels})[0]
    np.testing.assert_allclose(features, pixels.mean((2, 3)), rtol=1e-5)


def test_features_are_missing_behind_unknown_operators():
    constants = {"weight": np.eye(CLASSES, dtype=np.float32)}
    nodes = [
        helper.make_node("Gemm", ["pixels", "weight"], ["product"]),
        helper.make_node("Softmax", ["product"], ["logits"]),
    ]
    model = _network(nodes, constants, [CLASSES])
    before = model.SerializeToString()
    assert not append_features(model)
    assert model.SerializeToString() == before
