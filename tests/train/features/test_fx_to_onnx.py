from __future__ import annotations

import operator
import time

import onnx
import pytest
import torch
import torchvision
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from edgetl.core.errors import ExportError
from edgetl.train.features.extractor import make_onnx_extractor
from edgetl.train.features.fusion import fold_batch_norm
from edgetl.train.features.fx_to_onnx import convert_fx_to_onnx

SMALLEST = {
    "alexnet": 224,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "googlenet": 64,
    "inception_v3": 96,
    "mnasnet0_5": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "regnet_y_400mf": 32,
    "resnet18": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 64,
}
"""One architecture per convolutional family at a fast size; VGG has AlexNet's operators."""


def assert_equal(subgraph: fx.GraphModule, *values: Tensor) -> None:
    expected = subgraph(*values)
    outputs = make_onnx_extractor(subgraph, tuple(value[:2] for value in values))(*values)
    for value, reference in zip(
        outputs, expected if isinstance(expected, tuple) else (expected,), strict=True
    ):
        assert value.shape == reference.shape
        assert float((value - reference).abs().max()) <= 1e-4 * float(reference.abs().max()) + 1e-6


@pytest.mark.parametrize("model", SMALLEST)
def test_onnx_extractor_matches_torch_for_convolutional_families(model: str) -> None:
    torch.manual_seed(0)
    network = torchvision.models.get_model(
        model,
        weights=None,
        **({"init_weights": False} if model in ("googlenet", "inception_v3") else {}),
    )
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    subgraph = fold_batch_norm(fx.symbolic_trace(network.eval()))
    images = torch.randn(5, 3, SMALLEST[model], SMALLEST[model])
    with torch.no_grad():
        assert_equal(subgraph, images)


@pytest.mark.parametrize(
    "model",
    [
        "googlenet",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("convnext_tiny", "swin_t", "vit_b_16")
        ),
    ],
)
def test_convert_names_unsupported_operators(model: str) -> None:
    # GoogLeNet and Inception, as built by edgetl, split their input into channels.
    options = (
        {"transform_input": True, "aux_logits": False, "init_weights": False}
        if model == "googlenet"
        else {}
    )
    network = torchvision.models.get_model(model, weights=None, **options).eval()
    with pytest.raises(ExportError, match="not supported"):
        convert_fx_to_onnx(fx.symbolic_trace(network), (torch.zeros(2, 3, 224, 224),), ["image"])


def test_conversion_takes_less_than_three_seconds() -> None:
    subgraph = fold_batch_norm(
        fx.symbolic_trace(torchvision.models.mobilenet_v2(weights=None).eval())
    )
    durations = []
    for _ in range(3):
        start = time.perf_counter()
        onnx.checker.check_model(
            convert_fx_to_onnx(subgraph, (torch.zeros(2, 3, 64, 64),), ["image"]), full_check=True
        )
        durations.append(time.perf_counter() - start)
    assert min(durations) < 3, "PyTorch's exporter takes 6 to 20 s"


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
    side=st.integers(9, 17),
)
def test_convolution_matches_torch_for_any_parameters(
    kernel: int, stride: int, padding: int, dilation: int, groups: int, bias: bool, side: int
) -> None:
    convolution = nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups, bias)
    with torch.no_grad():
        assert_equal(
            fx.symbolic_trace(nn.Sequential(convolution, nn.Hardswish())),
            torch.randn(3, 4, side, side + 2),
        )


@settings(max_examples=40, deadline=None)
@given(
    average=st.booleans(),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    ceil=st.booleans(),
    side=st.integers(7, 15),
)
def test_pooling_matches_torch_for_any_parameters(
    average: bool, kernel: int, stride: int, padding: int, ceil: bool, side: int
) -> None:
    assume(padding <= kernel // 2)
    # With windows beyond the end, onnxruntime's averages divide by other counts than PyTorch's. No
    # torchvision model has them.
    assume(not (average and ceil))
    pool = (
        nn.AvgPool2d(kernel, stride, padding, ceil)
        if average
        else nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil)
    )
    assert_equal(fx.symbolic_trace(nn.Sequential(nn.ReLU(), pool)), torch.randn(3, 2, side, side))


def test_subgraph_with_several_outputs_and_a_passthrough() -> None:
    class Subgraph(nn.Module):
        def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            both = torch.cat([first, second], 1)
            return first, both, operator.mul(both, both)

    assert_equal(fx.symbolic_trace(Subgraph()), torch.randn(3, 2, 4, 4), torch.randn(3, 1, 4, 4))


def test_convert_rejects_adaptive_pooling_to_7x7() -> None:
    with pytest.raises(ExportError, match="adaptive pooling from"):
        convert_fx_to_onnx(
            fx.symbolic_trace(nn.Sequential(nn.AdaptiveAvgPool2d(7))),
            (torch.zeros(2, 3, 5, 5),),
            ["value"],
        )


def test_convert_rejects_scalars_and_reshaped_batches() -> None:
    class Shifted(nn.Module):
        def forward(self, value: Tensor) -> Tensor:
            return value + 1.0

    class Merged(nn.Module):
        def forward(self, value: Tensor) -> Tensor:
            return value.view(-1, 4)

    for module, message in (
        (Shifted(), "both operands must be tensors"),
        (Merged(), "first axis is not the batch"),
    ):
        with pytest.raises(ExportError, match=message):
            convert_fx_to_onnx(fx.symbolic_trace(module), (torch.zeros(2, 3, 4, 4),), ["value"])
