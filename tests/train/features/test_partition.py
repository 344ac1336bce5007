from __future__ import annotations

import pytest
import torch
from torch import nn

from edgetl.core.architectures import load_architectures
from edgetl.train.common.precision import ComputeConfig, choose_compute_config
from edgetl.train.features import extractor as prefixes
from edgetl.train.features.extractor import (
    choose_fastest_extractor,
    make_extractor,
    make_float32_extractor,
    make_half_extractor,
)
from edgetl.train.features.partition import TracedModel, check_subgraphs
from edgetl.train.model.factory import AdaptedModel, build_adapted_model
from edgetl.train.model.freezing import set_trainable

SMALLEST = {
    "alexnet": 64, "convnext_tiny": 32, "densenet121": 32, "efficientnet_b0": 32, "googlenet": 64, "inception_v3": 96, "mnasnet0_5": 32,
    "mobilenet_v2": 32, "mobilenet_v3_small": 32, "regnet_y_400mf": 32, "resnet18": 32, "shufflenet_v2_x0_5": 32, "squeezenet1_1": 64,
    "swin_t": 64, "vgg11": 32, "vit_b_16": 32,
}  # fmt: skip
"""One architecture of each family at a size that is quickly computed; MaxViT's is fixed, at 224."""
COMPUTING = choose_compute_config("cpu", "fp32")


def adapted(model: str, size: int = 32) -> AdaptedModel:
    torch.manual_seed(0)
    network = build_adapted_model(model, size, 3, 8, 0.2, None)
    for module in network.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return network


def test_every_family_has_its_test() -> None:
    assert {load_architectures()[name].family for name in SMALLEST} == {
        one.family for one in load_architectures().values()
    } - {"maxvit"}


@pytest.mark.parametrize("model", SMALLEST)
def test_every_architecture_can_be_cut_and_its_pieces_give_the_whole(model: str) -> None:
    network = adapted(model, SMALLEST[model])
    traced = TracedModel(network)
    cuts = []
    for unfreeze in (load_architectures()[model].unfreeze, "head"):
        set_trainable(network, unfreeze).train_mode()
        cuts.append(traced.find_cut())
        assert traced.has_blocks_before(cuts[-1])
    check_subgraphs(traced, network.model, cuts, SMALLEST[model])
    set_trainable(network, "all").train_mode()
    assert not traced.has_blocks_before(traced.find_cut())


def test_nothing_that_changes_between_epochs_lies_before_the_cut() -> None:
    network = adapted("mobilenet_v2")
    traced = TracedModel(network)
    set_trainable(network, 3).train_mode()
    cut = traced.find_cut()
    assert cut.name == "features_15"
    prefix, tail = traced.extract_subgraph(traced.input_cut, cut), traced.extract_subgraph(cut)
    assert not any(parameter.requires_grad for parameter in prefix.parameters())
    assert {
        id(parameter) for parameter in network.model.parameters() if parameter.requires_grad
    } <= {id(parameter) for parameter in tail.parameters()}, (
        "the tail trains the network's own parameters"
    )
    network.model.train()  # nobody freezes: BatchNorm moves, and nothing is fixed
    assert not traced.has_blocks_before(traced.find_cut())
    set_trainable(network, "head").train_mode()
    assert traced.find_cut().name == "flatten", (
        "the head's dropout is random and stays behind the cut"
    )


def test_pieces_that_are_not_the_network_are_refused() -> None:
    network = adapted("mobilenet_v2")
    traced = TracedModel(network)
    set_trainable(network, "head").train_mode()
    cut = traced.find_cut()
    network.model.forward = lambda x: torch.zeros(len(x), 3)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="do not give the logits"):
        check_subgraphs(traced, network.model, [cut], 32)


def test_a_network_that_cannot_be_traced_says_so() -> None:
    def branching(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x if float(x.sum()) > 0 else -x

    network = adapted("mobilenet_v2")
    network.model.__class__ = type("Branching", (type(network.model),), {"forward": branching})
    with pytest.raises(ValueError, match="cannot trace"):
        TracedModel(network)


@pytest.mark.parametrize("model", ["mobilenet_v2", "densenet121"])
def test_every_runtime_gives_the_frozen_blocks_own_values(model: str) -> None:
    network = adapted(model)
    traced = TracedModel(network)
    set_trainable(network, load_architectures()[model].unfreeze).train_mode()
    cut = traced.find_cut()
    network.model.eval()
    piece = traced.extract_subgraph(traced.input_cut, cut)
    images = torch.randn(5, 3, 32, 32)
    with torch.inference_mode():
        expected = piece(images)
    runtimes = {
        "exact": (make_float32_extractor(piece, COMPUTING), 1e-3),
        "onnxruntime": (make_extractor("onnxruntime-fp32", piece, (images,), COMPUTING), 1e-3),
        "bf16": (make_half_extractor(piece, COMPUTING, torch.bfloat16), 0.1),
        "fp16": (make_half_extractor(piece, COMPUTING, torch.float16), 0.02),
    }
    for name, (prefix, tolerance) in runtimes.items():
        for value, reference in zip(prefix(images), expected, strict=True):
            assert value.shape == reference.shape
            assert float((value.float() - reference).abs().max()) <= tolerance * float(
                reference.abs().max()
            ), name


def test_the_fastest_that_is_right_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    network = adapted("mobilenet_v2")
    traced = TracedModel(network)
    set_trainable(network, "head").train_mode()
    piece, images = (
        traced.extract_subgraph(traced.input_cut, traced.find_cut()),
        torch.randn(4, 3, 32, 32),
    )
    names = ["pytorch-fp32", "pytorch-bf16", "onnxruntime-fp32"]
    monkeypatch.setattr(
        "edgetl.train.features.extractor.candidate_runtimes", lambda computing: names
    )
    times = {"pytorch-fp32": 3.0, "pytorch-bf16": 1.0, "onnxruntime-fp32": 2.0}
    monkeypatch.setattr(
        "edgetl.train.features.extractor._measure_ms_per_image",
        lambda prefix, values, computing: times[prefix.name],
    )
    choice = choose_fastest_extractor(piece, (images,), COMPUTING)
    assert (choice.fast, choice.exact) == ("pytorch-bf16", "onnxruntime-fp32")
    assert choice.milliseconds == times
    monkeypatch.setattr("edgetl.train.features.extractor._is_close", lambda *given: False)
    assert choose_fastest_extractor(piece, (images,), COMPUTING).fast == "pytorch-fp32", (
        "a wrong one is out, however fast"
    )


def test_a_runtime_that_does_not_know_the_network_is_left_out() -> None:
    network = adapted("convnext_tiny")
    traced = TracedModel(network)
    set_trainable(network, "head").train_mode()
    choice = choose_fastest_extractor(
        traced.extract_subgraph(traced.input_cut, traced.find_cut()),
        (torch.randn(4, 3, 32, 32),),
        COMPUTING,
    )
    assert "onnxruntime-fp32" not in choice.milliseconds
    assert choice.exact == "pytorch-fp32"


@pytest.mark.parametrize(("scale", "fast"), [(1.0, "pytorch-bf16"), (2.0, "pytorch-fp32")])
def test_a_gpu_takes_16_bits_without_timing_if_values_agree(
    scale: float, fast: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(name: str, *_: object) -> prefixes.FeatureExtractor:
        return prefixes.FeatureExtractor(
            name, lambda *values: (values[0] * (scale if "bf16" in name else 1),)
        )

    monkeypatch.setattr(prefixes, "make_extractor", make)
    monkeypatch.setattr(prefixes, "_measure_ms_per_image", lambda *_: pytest.fail("timed"))
    on_gpu = ComputeConfig(torch.device("cuda"), "bf16")
    choice = choose_fastest_extractor(
        torch.fx.symbolic_trace(nn.Identity()), (torch.randn(2, 3),), on_gpu
    )
    assert (choice.fast, choice.exact, choice.milliseconds) == (fast, "pytorch-fp32", {})
