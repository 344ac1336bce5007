"""The frozen part of a network as a fixed function, run by whatever is fastest on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from edgetl.core.registry import PREFIXES, resolve
from edgetl.device.runtime.session import create_session
from edgetl.train.common.precision import Computing, Function, Values
from edgetl.train.features.fusion import fold_batch_norm, fuse_activations
from edgetl.train.features.fx_to_onnx import traced_graph

_LARGEST_DIFFERENCE = 0.05
"""Of the values' own spread; bfloat16 through fifty layers stays below half of it."""
_ROUNDING = 1e-3
"""The same between two runtimes in float32."""
_TIMED_BATCH = 8
_HALVES = {"pytorch-bf16": torch.bfloat16, "pytorch-fp16": torch.float16}


@dataclass(frozen=True)
class Prefix:
    """A frozen function with its runtime."""

    name: str
    """`pytorch-fp32`, `pytorch-bf16`, `pytorch-fp16`, `onnxruntime-fp32`, ..."""
    function: Function

    def __call__(self, *values: Tensor) -> Values:
        """The values at the end of the prefix; no gradients."""
        # Not inference mode: its tensors may not be changed in place, as a dropout at the start of what follows does.
        with torch.no_grad():
            return self.function(*values)


def exact_prefix(piece: fx.GraphModule, computing: Computing) -> Prefix:
    """The piece in float32, folded: what the trained network computes itself, to rounding."""
    return Prefix(
        "pytorch-fp32",
        _folded(piece, computing, torch.float32).to(  # type: ignore[call-overload]
            device=computing.device, memory_format=torch.channels_last
        ),
    )


def half_prefix(piece: fx.GraphModule, computing: Computing, dtype: torch.dtype) -> Prefix:
    """The same in bfloat16 or float16."""
    module = _folded(piece, computing, dtype).to(  # type: ignore[call-overload]
        device=computing.device, dtype=dtype, memory_format=torch.channels_last
    )
    name = next(name for name, known in _HALVES.items() if known == dtype)
    return Prefix(name, lambda *values: module(*(value.to(dtype) for value in values)))


@dataclass(frozen=True)
class Choice:
    """Names of the runtimes that were measured fastest."""

    fast: str
    """Of all: for training images."""
    exact: str
    """Of those in float32: for validation images."""
    milliseconds: dict[str, float]
    """An image, of each that was timed; empty where there was nothing to choose from."""


def make_prefix(
    name: str, piece: fx.GraphModule, example: Sequence[Tensor], computing: Computing
) -> Prefix:
    """The prefix of this name.

    Raises:
        EdgetlError: its runtime cannot take the piece.
    """
    if name == "pytorch-fp32":
        return exact_prefix(piece, computing)
    if name in _HALVES:
        return half_prefix(piece, computing, _HALVES[name])
    return Prefix(
        name,
        resolve(PREFIXES, name.removesuffix("-fp32"), "runtime of frozen blocks")(
            fold_batch_norm(piece), tuple(example)
        ),
    )


def candidates(computing: Computing) -> list[str]:
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
    return [*names, *(f"{name}-fp32" for name in PREFIXES)]


def prefix_by_precision(
    piece: fx.GraphModule, example: Sequence[Tensor], computing: Computing
) -> Choice:
    """The choice without a clock: PyTorch, for training images in the precision of the training steps where its values agree."""
    exact = "pytorch-fp32"
    if computing.precision == "fp32":
        return Choice(exact, exact, {})
    return _half_if_it_agrees(
        exact, f"pytorch-{computing.precision}", piece, tuple(example), computing
    )


def fastest_prefix(
    piece: fx.GraphModule, example: Sequence[Tensor], computing: Computing
) -> Choice:
    """The candidates that take least time for a batch like `example`.

    A candidate that cannot run the piece, or whose values differ from float32's by more than its arithmetic explains, is left out.
    """
    names = candidates(computing)
    if len(names) == 1:
        return Choice(names[0], names[0], {})
    if computing.device.type == "cuda":
        # Not timed. Float32 convolutions are computed without TF32 here, off the tensor cores that 16-bit ones use, and a few images
        # are bound by the host's launches, so that its noise would decide. Only the values are checked.
        return prefix_by_precision(piece, example, computing)
    values = tuple(value[:_TIMED_BATCH] for value in example)
    reference = make_prefix(names[0], piece, values, computing)
    expected = reference(*values)
    found = {reference.name: _milliseconds(reference, values, computing)}
    for name in names[1:]:
        try:
            prefix = make_prefix(name, piece, values, computing)
            if _agrees(
                prefix(*values), expected, _LARGEST_DIFFERENCE if name in _HALVES else _ROUNDING
            ):
                found[name] = _milliseconds(prefix, values, computing)
        except Exception:
            # A runtime that does not know an operator is no reason to stop: another one is there.
            continue
    fast, exact = (
        min(those, key=lambda name: found[name])
        for those in (found, [name for name in found if name not in _HALVES])
    )
    return Choice(fast, exact, found)


def _half_if_it_agrees(
    exact: str, half: str, piece: fx.GraphModule, values: Values, computing: Computing
) -> Choice:
    expected = make_prefix(exact, piece, values, computing)(*values)
    agrees = _agrees(
        make_prefix(half, piece, values, computing)(*values), expected, _LARGEST_DIFFERENCE
    )
    return Choice(half if agrees else exact, exact, {})


def _folded(piece: fx.GraphModule, computing: Computing, dtype: torch.dtype) -> nn.Module:
    folded = fold_batch_norm(piece)
    # oneDNN's own operator refuses 16-bit types that the CPU lacks; PyTorch's convolution emulates them.
    known = dtype == torch.float32 or (
        dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return fuse_activations(folded) if computing.device.type == "cpu" and known else folded


def _milliseconds(prefix: Prefix, values: Values, computing: Computing) -> float:
    taken = []
    for _ in range(3):
        computing.wait()
        started = time.perf_counter()
        prefix(*values)
        computing.wait()
        taken.append(time.perf_counter() - started)
    return min(taken[1:]) / len(values[0]) * 1e3


def _agrees(values: Values, expected: Values, tolerance: float) -> bool:
    return all(
        float((value.float() - reference).square().mean().sqrt())
        <= tolerance * float(reference.std()) + 1e-6
        for value, reference in zip(values, expected, strict=True)
    )


def onnx_prefix(
    piece: fx.GraphModule, example: tuple[Tensor, ...]
) -> Callable[..., tuple[Tensor, ...]]:
    """A frozen piece (values, ...) -> (values, ...), traced down to PyTorch's modules, as a session on the CPU; float32.

    Raises:
        ExportError: an operator that is not known.
        BundleError: ONNX Runtime refuses what was written.
    """
    names = [f"value{at}" for at in range(len(example))]
    exported = traced_graph(piece, example, names)
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
