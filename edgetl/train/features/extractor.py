"""The frozen part of a network as a fixed function, run by whatever is fastest on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from edgetl.core.registry import FEATURE_EXTRACTORS, load_from_registry
from edgetl.device.runtime.session import create_session
from edgetl.train.common.precision import ComputeConfig, TensorFunction, Tensors
from edgetl.train.features.fusion import fold_batch_norm, fuse_activations
from edgetl.train.features.fx_to_onnx import convert_fx_to_onnx

_HALF_TOLERANCE = 0.05
"""Of the values' own spread; bfloat16 through fifty layers stays below half of it."""
_FLOAT32_TOLERANCE = 1e-3
"""The same between two runtimes in float32."""
_TIMED_BATCH_SIZE = 8
_HALF_DTYPES = {"pytorch-bf16": torch.bfloat16, "pytorch-fp16": torch.float16}


@dataclass(frozen=True)
class FeatureExtractor:
    """A frozen function with its runtime."""

    name: str
    """`pytorch-fp32`, `pytorch-bf16`, `pytorch-fp16`, `onnxruntime-fp32`, ..."""
    function: TensorFunction

    def __call__(self, *values: Tensor) -> Tensors:
        """The values at the end of the prefix; no gradients."""
        # Not inference mode: its tensors may not be changed in place, as a dropout at the start of what follows does.
        with torch.no_grad():
            return self.function(*values)


def make_float32_extractor(piece: fx.GraphModule, computing: ComputeConfig) -> FeatureExtractor:
    """The piece in float32, folded: what the trained network computes itself, to rounding."""
    return FeatureExtractor(
        "pytorch-fp32",
        _fold_and_fuse(piece, computing, torch.float32).to(  # type: ignore[call-overload]
            device=computing.device, memory_format=torch.channels_last
        ),
    )


def make_half_extractor(
    piece: fx.GraphModule, computing: ComputeConfig, dtype: torch.dtype
) -> FeatureExtractor:
    """The same in bfloat16 or float16."""
    module = _fold_and_fuse(piece, computing, dtype).to(  # type: ignore[call-overload]
        device=computing.device, dtype=dtype, memory_format=torch.channels_last
    )
    name = next(name for name, known in _HALF_DTYPES.items() if known == dtype)
    return FeatureExtractor(name, lambda *values: module(*(value.to(dtype) for value in values)))


@dataclass(frozen=True)
class ExtractorChoice:
    """Names of the runtimes that were measured fastest."""

    fast: str
    """Of all: for training images."""
    exact: str
    """Of those in float32: for validation images."""
    milliseconds: dict[str, float]
    """An image, of each that was timed; empty where there was nothing to choose from."""


def make_extractor(
    name: str, piece: fx.GraphModule, example: Sequence[Tensor], computing: ComputeConfig
) -> FeatureExtractor:
    """The prefix of this name.

    Raises:
        EdgetlError: its runtime cannot take the piece.
    """
    if name == "pytorch-fp32":
        return make_float32_extractor(piece, computing)
    if name in _HALF_DTYPES:
        return make_half_extractor(piece, computing, _HALF_DTYPES[name])
    return FeatureExtractor(
        name,
        load_from_registry(
            FEATURE_EXTRACTORS, name.removesuffix("-fp32"), "runtime of frozen blocks"
        )(fold_batch_norm(piece), tuple(example)),
    )


def candidate_runtimes(computing: ComputeConfig) -> list[str]:
    """Names worth timing on this device."""
    if computing.device.type != "cpu":
        return (
            ["pytorch-fp32"]
            if computing.precision == "fp32"
            else ["pytorch-fp32", f"pytorch-{computing.precision}"]
        )
    names = ["pytorch-fp32"]
    if computing.may_use_bf16:
        names.append("pytorch-bf16")
    return [*names, *(f"{name}-fp32" for name in FEATURE_EXTRACTORS)]


def choose_extractor_by_precision(
    piece: fx.GraphModule, example: Sequence[Tensor], computing: ComputeConfig
) -> ExtractorChoice:
    """The choice without a clock: PyTorch, for training images in the precision of the training steps where its values agree."""
    exact = "pytorch-fp32"
    if computing.precision == "fp32":
        return ExtractorChoice(exact, exact, {})
    return _choose_half_if_close(
        exact, f"pytorch-{computing.precision}", piece, tuple(example), computing
    )


def choose_fastest_extractor(
    piece: fx.GraphModule, example: Sequence[Tensor], computing: ComputeConfig
) -> ExtractorChoice:
    """The candidates that take least time for a batch like `example`.

    A candidate that cannot run the piece, or whose values differ from float32's by more than its arithmetic explains, is left out.
    """
    names = candidate_runtimes(computing)
    if len(names) == 1:
        return ExtractorChoice(names[0], names[0], {})
    if computing.device.type == "cuda":
        # Not timed. Float32 convolutions are computed without TF32 here, off the tensor cores that 16-bit ones use, and a few images
        # are bound by the host's launches, so that its noise would decide. Only the values are checked.
        return choose_extractor_by_precision(piece, example, computing)
    values = tuple(value[:_TIMED_BATCH_SIZE] for value in example)
    reference = make_extractor(names[0], piece, values, computing)
    expected = reference(*values)
    found = {reference.name: _measure_ms_per_image(reference, values, computing)}
    for name in names[1:]:
        try:
            prefix = make_extractor(name, piece, values, computing)
            if _is_close(
                prefix(*values),
                expected,
                _HALF_TOLERANCE if name in _HALF_DTYPES else _FLOAT32_TOLERANCE,
            ):
                found[name] = _measure_ms_per_image(prefix, values, computing)
        except Exception:
            # A runtime that does not know an operator is no reason to stop: another one is there.
            continue
    fast, exact = (
        min(those, key=lambda name: found[name])
        for those in (found, [name for name in found if name not in _HALF_DTYPES])
    )
    return ExtractorChoice(fast, exact, found)


def _choose_half_if_close(
    exact: str, half: str, piece: fx.GraphModule, values: Tensors, computing: ComputeConfig
) -> ExtractorChoice:
    expected = make_extractor(exact, piece, values, computing)(*values)
    agrees = _is_close(
        make_extractor(half, piece, values, computing)(*values), expected, _HALF_TOLERANCE
    )
    return ExtractorChoice(half if agrees else exact, exact, {})


def _fold_and_fuse(
    piece: fx.GraphModule, computing: ComputeConfig, dtype: torch.dtype
) -> nn.Module:
    folded = fold_batch_norm(piece)
    # oneDNN's own operator refuses 16-bit types that the CPU lacks; PyTorch's convolution emulates them.
    known = dtype == torch.float32 or (
        dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return fuse_activations(folded) if computing.device.type == "cpu" and known else folded


def _measure_ms_per_image(
    prefix: FeatureExtractor, values: Tensors, computing: ComputeConfig
) -> float:
    taken = []
    for _ in range(3):
        computing.synchronize()
        started = time.perf_counter()
        prefix(*values)
        computing.synchronize()
        taken.append(time.perf_counter() - started)
    return min(taken[1:]) / len(values[0]) * 1e3


def _is_close(values: Tensors, expected: Tensors, tolerance: float) -> bool:
    return all(
        float((value.float() - reference).square().mean().sqrt())
        <= tolerance * float(reference.std()) + 1e-6
        for value, reference in zip(values, expected, strict=True)
    )


def make_onnx_extractor(
    piece: fx.GraphModule, example: tuple[Tensor, ...]
) -> Callable[..., tuple[Tensor, ...]]:
    """A frozen piece (values, ...) -> (values, ...), traced down to PyTorch's modules, as a session on the CPU; float32.

    Raises:
        ExportError: an operator that is not known.
        BundleError: ONNX Runtime refuses what was written.
    """
    names = [f"value{at}" for at in range(len(example))]
    exported = convert_fx_to_onnx(piece, example, names)
    # PyTorch works in the same process: threads that wait in a busy loop would take its cores.
    session = create_session(
        exported.SerializeToString(), threads=torch.get_num_threads(), spinning=False
    )
    outputs = [output.name for output in session.get_outputs()]

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        feeds = {
            name: value.contiguous().numpy() for name, value in zip(names, values, strict=True)
        }
        return tuple(torch.from_numpy(output) for output in session.run(outputs, feeds))

    return run
