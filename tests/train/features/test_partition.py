from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgetl.core.architectures import load_architectures
from edgetl.train.common.precision import ComputeConfig, choose_compute_config
from edgetl.train.features import extractor as extractor_module
from edgetl.train.features.extractor import (
    choose_fastest_extractor,
    make_extractor,
    make_float32_extractor,
    make_half_extractor,
)
from edgetl.train.features.fusion import fold_batch_norm
from edgetl.train.features.partition import TracedModel, check_subgraphs
from edgetl.train.model.blocks import find_blocks
from edgetl.train.model.factory import AdaptedModel, build_adapted_model
from edgetl.train.model.freezing import set_trainable
from edgetl.train.model.head import ClassifierLayer
from edgetl.train.model.stock_models import get_architecture
from tests.helpers.architectures import mark_slow

SMALLEST = {
    "alexnet": 64,
    "convnext_tiny": 32,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "efficientnet_lite0": 32,
    "googlenet": 64,
    "inception_v3": 96,
    "mnasnet0_5": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "regnet_y_400mf": 32,
    "resnet18": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 64,
    "swin_t": 64,
    "vgg11": 32,
    "vit_b_16": 32,
}
"""One architecture per family at a fast size; MaxViT is left out, its size is fixed at 224."""
COMPUTE_CONFIG = choose_compute_config("cpu", "fp32")


def make_adapted(model: str, size: int = 32) -> AdaptedModel:
    torch.manual_seed(0)
    adapted = build_adapted_model(model, size, 3, 8, 0.2, None)
    for module in adapted.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return adapted


def test_smallest_covers_every_family_but_maxvit() -> None:
    assert {load_architectures()[name].family for name in SMALLEST} == {
        row.family for row in load_architectures().values()
    } - {"maxvit"}


@pytest.mark.parametrize("model", mark_slow(SMALLEST))
def test_subgraphs_reproduce_logits_of_every_architecture(model: str) -> None:
    adapted = make_adapted(model, SMALLEST[model])
    traced = TracedModel(adapted)
    cuts = []
    for unfreeze in (load_architectures()[model].unfreeze, "head"):
        set_trainable(adapted, unfreeze).train_mode()
        cuts.append(traced.find_cut())
        assert traced.has_blocks_before(cuts[-1])
    check_subgraphs(traced, adapted.model, cuts, SMALLEST[model])
    set_trainable(adapted, "all").train_mode()
    assert not traced.has_blocks_before(traced.find_cut())


def test_cut_precedes_everything_that_changes_between_epochs() -> None:
    adapted = make_adapted("mobilenet_v2")
    traced = TracedModel(adapted)
    set_trainable(adapted, 3).train_mode()
    cut = traced.find_cut()
    assert cut.name == "features_15"
    extractor, tail = traced.extract_subgraph(traced.input_cut, cut), traced.extract_subgraph(cut)
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    assert {
        id(parameter) for parameter in adapted.model.parameters() if parameter.requires_grad
    } <= {id(parameter) for parameter in tail.parameters()}, (
        "the tail shares the model's parameters"
    )
    adapted.model.train()  # BatchNorm statistics change, so nothing is fixed
    assert not traced.has_blocks_before(traced.find_cut())
    set_trainable(adapted, "head").train_mode()
    assert traced.find_cut().name == "flatten", (
        "the head's dropout is random and stays after the cut"
    )


def test_check_subgraphs_rejects_different_logits() -> None:
    adapted = make_adapted("mobilenet_v2")
    traced = TracedModel(adapted)
    set_trainable(adapted, "head").train_mode()
    cut = traced.find_cut()
    adapted.model.forward = lambda x: torch.zeros(len(x), 3)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="do not reproduce the model's logits"):
        check_subgraphs(traced, adapted.model, [cut], 32)


class _OptionalArguments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 2)

    def forward(self, pixels: Tensor, mask: Tensor | None = None, flip: bool = False) -> Tensor:
        values = self.layer(pixels)
        if mask is not None:
            values = values * mask
        return self.head((values.flip(3) if flip else values).mean((2, 3)))


def test_optional_arguments_keep_their_defaults() -> None:
    model = _OptionalArguments()
    layer = ClassifierLayer("head", "linear", 8, (), None)
    adapted = AdaptedModel(model, layer, find_blocks(model, "head"))
    set_trainable(adapted, "head").train_mode()
    traced = TracedModel(adapted)
    cut = traced.find_cut()
    assert traced.has_blocks_before(cut)
    check_subgraphs(traced, model, [cut], 16)


def test_traced_model_rejects_data_dependent_control_flow() -> None:
    def branching(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x if float(x.sum()) > 0 else -x

    adapted = make_adapted("mobilenet_v2")
    adapted.model.__class__ = type("Branching", (type(adapted.model),), {"forward": branching})
    with pytest.raises(ValueError, match="cannot trace the model"):
        TracedModel(adapted)


@pytest.mark.parametrize(
    "model", ["mobilenet_v2", "densenet121", "timm:lcnet_050", "timm:tinynet_e"]
)
def test_every_extractor_matches_the_frozen_blocks(model: str) -> None:
    adapted = make_adapted(model)
    traced = TracedModel(adapted)
    set_trainable(adapted, get_architecture(model).unfreeze).train_mode()
    cut = traced.find_cut()
    adapted.model.eval()
    subgraph = traced.extract_subgraph(traced.input_cut, cut)
    images = torch.randn(5, 3, 32, 32)
    with torch.inference_mode():
        expected = subgraph(images)
    runtimes = {
        "exact": (make_float32_extractor(subgraph, COMPUTE_CONFIG), 1e-3),
        "onnxruntime": (
            make_extractor("onnxruntime-fp32", subgraph, (images,), COMPUTE_CONFIG),
            1e-3,
        ),
        "bf16": (make_half_extractor(subgraph, COMPUTE_CONFIG, torch.bfloat16), 0.1),
        "fp16": (make_half_extractor(subgraph, COMPUTE_CONFIG, torch.float16), 0.02),
    }
    for name, (extractor, tolerance) in runtimes.items():
        for value, reference in zip(extractor(images), expected, strict=True):
            assert value.shape == reference.shape
            assert float((value.float() - reference).abs().max()) <= tolerance * float(
                reference.abs().max()
            ), name


def test_blocks_that_cannot_be_traced_keep_batch_norm() -> None:
    # TensorFlow's padding of strided convolutions depends on the size of the input.
    adapted = make_adapted("timm:tf_efficientnet_lite0")
    traced = TracedModel(adapted)
    set_trainable(adapted, "head").train_mode()
    cut = traced.find_cut()
    adapted.model.eval()
    subgraph = traced.extract_subgraph(traced.input_cut, cut)
    images = torch.randn(5, 3, 32, 32)
    with torch.inference_mode():
        (expected,) = subgraph(images)
    folded = fold_batch_norm(subgraph)
    norms, unfolded = (
        sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        for model in (folded, subgraph)
    )
    assert 0 < norms < unfolded
    (features,) = make_float32_extractor(subgraph, COMPUTE_CONFIG)(images)
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-3)


def test_choose_extractor_takes_fastest_correct_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = make_adapted("mobilenet_v2")
    traced = TracedModel(adapted)
    set_trainable(adapted, "head").train_mode()
    subgraph, images = (
        traced.extract_subgraph(traced.input_cut, traced.find_cut()),
        torch.randn(4, 3, 32, 32),
    )
    names = ["pytorch-fp32", "pytorch-bf16", "onnxruntime-fp32"]
    monkeypatch.setattr(
        "edgetl.train.features.extractor.candidate_runtimes", lambda compute_config: names
    )
    times = {"pytorch-fp32": 3.0, "pytorch-bf16": 1.0, "onnxruntime-fp32": 2.0}
    monkeypatch.setattr(
        "edgetl.train.features.extractor._measure_ms_per_image",
        lambda extractor, values, compute_config: times[extractor.name],
    )
    choice = choose_fastest_extractor(subgraph, (images,), COMPUTE_CONFIG)
    assert (choice.fast, choice.exact) == ("pytorch-bf16", "onnxruntime-fp32")
    assert choice.milliseconds == times
    monkeypatch.setattr("edgetl.train.features.extractor._is_close", lambda *_: False)
    assert choose_fastest_extractor(subgraph, (images,), COMPUTE_CONFIG).fast == "pytorch-fp32", (
        "a runtime with wrong features is never chosen"
    )


def test_choose_extractor_skips_runtime_without_operator() -> None:
    adapted = make_adapted("convnext_tiny")
    traced = TracedModel(adapted)
    set_trainable(adapted, "head").train_mode()
    choice = choose_fastest_extractor(
        traced.extract_subgraph(traced.input_cut, traced.find_cut()),
        (torch.randn(4, 3, 32, 32),),
        COMPUTE_CONFIG,
    )
    assert "onnxruntime-fp32" not in choice.milliseconds
    assert choice.exact == "pytorch-fp32"


@pytest.mark.parametrize(("scale", "fast"), [(1.0, "pytorch-bf16"), (2.0, "pytorch-fp32")])
def test_gpu_uses_16_bits_without_timing_if_features_agree(
    scale: float, fast: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(name: str, *_: object) -> extractor_module.FeatureExtractor:
        return extractor_module.FeatureExtractor(
            name, lambda *values: (values[0] * (scale if "bf16" in name else 1),)
        )

    monkeypatch.setattr(extractor_module, "make_extractor", make)
    monkeypatch.setattr(extractor_module, "_measure_ms_per_image", lambda *_: pytest.fail("timed"))
    on_gpu = ComputeConfig(torch.device("cuda"), "bf16")
    choice = choose_fastest_extractor(
        torch.fx.symbolic_trace(nn.Identity()), (torch.randn(2, 3),), on_gpu
    )
    assert (choice.fast, choice.exact, choice.milliseconds) == (fast, "pytorch-fp32", {})
