"""Frozen blocks as a feature extractor, run by the fastest available runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from edgetl.core.registry import FEATURE_EXTRACTORS, load_from_registry
from edgetl.device.runtime.session import create_session
from edgetl.train.common.autotune import best_duration_s
from edgetl.train.common.precision import ComputeConfig, TensorFunction, Tensors
from edgetl.train.features.fusion import fold_batch_norm, fuse_activations
from edgetl.train.features.fx_to_onnx import convert_fx_to_onnx

_HALF_TOLERANCE = 0.05
"""Largest RMS error of 16-bit features, relative to the features' standard deviation.

bfloat16 through fifty layers stays below half of it.
"""
_FLOAT32_TOLERANCE = 1e-3
"""Largest RMS error between two float32 runtimes, relative as above."""
_TIMED_BATCH_SIZE = 8
_HALF_DTYPES = {"pytorch-bf16": torch.bfloat16, "pytorch-fp16": torch.float16}


@dataclass(frozen=True)
class FeatureExtractor:
    """Frozen function with the name of its runtime."""

    name: str
    """`pytorch-fp32`, `pytorch-bf16`, `pytorch-fp16`, `onnxruntime-fp32`, ..."""
    function: TensorFunction

    def __call__(self, *values: Tensor) -> Tensors:
        """Return the features, without gradients."""
        # Not inference mode: its tensors cannot be changed in place, as a later dropout does.
        with torch.no_grad():
            return self.function(*values)


def make_float32_extractor(
    subgraph: fx.GraphModule, compute_config: ComputeConfig
) -> FeatureExtractor:
    """Return the subgraph in float32 with BatchNorm folded: equal to the model up to rounding."""
    return FeatureExtractor(
        "pytorch-fp32",
        _fold_and_fuse(subgraph, compute_config, torch.float32).to(  # type: ignore[call-overload]
            device=compute_config.device, memory_format=torch.channels_last
        ),
    )


def make_half_extractor(
    subgraph: fx.GraphModule, compute_config: ComputeConfig, dtype: torch.dtype
) -> FeatureExtractor:
    """Return the subgraph in bfloat16 or float16 with BatchNorm folded."""
    module = _fold_and_fuse(subgraph, compute_config, dtype).to(  # type: ignore[call-overload]
        device=compute_config.device, dtype=dtype, memory_format=torch.channels_last
    )
    name = next(name for name, half_dtype in _HALF_DTYPES.items() if half_dtype == dtype)
    return FeatureExtractor(name, lambda *values: module(*(value.to(dtype) for value in values)))


@dataclass(frozen=True)
class ExtractorChoice:
    """Names of the fastest runtimes."""

    fast: str
    """Fastest runtime, for training images."""
    exact: str
    """Fastest float32 runtime, for validation images."""
    milliseconds: dict[str, float]
    """Time per image of each timed runtime; empty if none was timed."""


def make_extractor(
    name: str, subgraph: fx.GraphModule, example: Sequence[Tensor], compute_config: ComputeConfig
) -> FeatureExtractor:
    """Return the extractor of this name.

    Raises:
        EdgetlError: the runtime does not support the subgraph.
    """
    if name == "pytorch-fp32":
        return make_float32_extractor(subgraph, compute_config)
    if name in _HALF_DTYPES:
        return make_half_extractor(subgraph, compute_config, _HALF_DTYPES[name])
    runtime = name.removesuffix("-fp32")
    make_function = load_from_registry(FEATURE_EXTRACTORS, runtime, "runtime of frozen blocks")
    return FeatureExtractor(name, make_function(fold_batch_norm(subgraph), tuple(example)))


def candidate_runtimes(compute_config: ComputeConfig) -> list[str]:
    """Return the names of the runtimes to try on this device."""
    names = ["pytorch-fp32"]
    if compute_config.device.type != "cpu":
        if compute_config.precision != "fp32":
            names.append(f"pytorch-{compute_config.precision}")
        return names
    if compute_config.may_use_bf16:
        names.append("pytorch-bf16")
    return [*names, *(f"{name}-fp32" for name in FEATURE_EXTRACTORS)]


def choose_extractor_by_precision(
    subgraph: fx.GraphModule, example: Sequence[Tensor], compute_config: ComputeConfig
) -> ExtractorChoice:
    """Choose PyTorch without timing.

    Training images use the precision of the training steps if its features agree with float32's.
    """
    exact = "pytorch-fp32"
    if compute_config.precision == "fp32":
        return ExtractorChoice(exact, exact, {})
    return _choose_half_if_close(
        exact, f"pytorch-{compute_config.precision}", subgraph, tuple(example), compute_config
    )


def choose_fastest_extractor(
    subgraph: fx.GraphModule, example: Sequence[Tensor], compute_config: ComputeConfig
) -> ExtractorChoice:
    """Choose the fastest candidates for a batch like `example`.

    A candidate is left out if it cannot run the subgraph, or if its features differ from
    float32's by more than its precision explains.
    """
    names = candidate_runtimes(compute_config)
    if len(names) == 1:
        return ExtractorChoice(names[0], names[0], {})
    if compute_config.device.type == "cuda":
        # Only the features are checked, nothing is timed. Float32 convolutions run without TF32
        # here, off the tensor cores that 16-bit ones use, and a few images are bound by the
        # host's kernel launches, so that its noise would decide.
        return choose_extractor_by_precision(subgraph, example, compute_config)
    values = tuple(value[:_TIMED_BATCH_SIZE] for value in example)
    reference = make_extractor(names[0], subgraph, values, compute_config)
    expected = reference(*values)
    ms_per_image = {reference.name: _measure_ms_per_image(reference, values, compute_config)}
    for name in names[1:]:
        tolerance = _HALF_TOLERANCE if name in _HALF_DTYPES else _FLOAT32_TOLERANCE
        try:
            extractor = make_extractor(name, subgraph, values, compute_config)
            if _is_close(extractor(*values), expected, tolerance):
                ms_per_image[name] = _measure_ms_per_image(extractor, values, compute_config)
        except Exception:
            # An operator that a runtime does not support is no reason to stop: others remain.
            continue
    float32_names = [name for name in ms_per_image if name not in _HALF_DTYPES]
    return ExtractorChoice(
        fast=min(ms_per_image, key=lambda name: ms_per_image[name]),
        exact=min(float32_names, key=lambda name: ms_per_image[name]),
        milliseconds=ms_per_image,
    )


def _choose_half_if_close(
    exact: str, half: str, subgraph: fx.GraphModule, values: Tensors, compute_config: ComputeConfig
) -> ExtractorChoice:
    expected = make_extractor(exact, subgraph, values, compute_config)(*values)
    half_values = make_extractor(half, subgraph, values, compute_config)(*values)
    fast = half if _is_close(half_values, expected, _HALF_TOLERANCE) else exact
    return ExtractorChoice(fast, exact, {})


def _fold_and_fuse(
    subgraph: fx.GraphModule, compute_config: ComputeConfig, dtype: torch.dtype
) -> nn.Module:
    folded = fold_batch_norm(subgraph)
    # oneDNN's fused operator rejects 16-bit types that the CPU lacks; PyTorch's convolution
    # emulates them.
    is_supported = dtype == torch.float32 or (
        dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    if compute_config.device.type == "cpu" and is_supported:
        return fuse_activations(folded)
    return folded


def _measure_ms_per_image(
    extractor: FeatureExtractor, values: Tensors, compute_config: ComputeConfig
) -> float:
    extractor(*values)  # builds the kernels
    duration_s = best_duration_s(lambda: extractor(*values), 2, compute_config.synchronize)
    return duration_s / len(values[0]) * 1e3


def _is_close(values: Tensors, expected: Tensors, tolerance: float) -> bool:
    return all(
        float((value.float() - reference).square().mean().sqrt())
        <= tolerance * float(reference.std()) + 1e-6
        for value, reference in zip(values, expected, strict=True)
    )


def make_onnx_extractor(
    subgraph: fx.GraphModule, example: tuple[Tensor, ...]
) -> Callable[..., tuple[Tensor, ...]]:
    """Return a frozen subgraph (values, ...) -> (values, ...) as a float32 session on the CPU.

    Args:
        subgraph: traced down to PyTorch's modules.
        example: inputs of two rows or more; only their shapes matter.

    Raises:
        ExportError: an operator is not supported.
        BundleError: ONNX Runtime cannot load the graph.
    """
    names = [f"value{index}" for index in range(len(example))]
    onnx_model = convert_fx_to_onnx(subgraph, example, names)
    # PyTorch runs in the same process: threads that spin while idle would take its cores.
    session = create_session(
        onnx_model.SerializeToString(), threads=torch.get_num_threads(), spinning=False
    )
    outputs = [output.name for output in session.get_outputs()]

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        feeds = {
            name: value.contiguous().numpy() for name, value in zip(names, values, strict=True)
        }
        return tuple(torch.from_numpy(output) for output in session.run(outputs, feeds))

    return run
