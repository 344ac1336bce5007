"""Nodes of a network file that NPU providers take, by the lists of operators they publish.

A list says nothing about attributes, types and fusions, so a node in it may still fall to the CPU;
only a device tells. Nodes outside it do fall to the CPU.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Collection, Iterator
from functools import cache
from importlib.resources import files
from typing import Any

import onnx
import onnxruntime
from onnxruntime.tools.mobile_helpers import usability_checker

from edgetl.core.artifacts.bundle import ProviderCoverage
from edgetl.export.npu.network import count_operators

_Check = Callable[[onnx.ModelProto, bool], Any]
"""A check of onnxruntime: (network, static shapes are required) -> its PartitioningInfo."""


def check_providers(network: onnx.ModelProto) -> Iterator[ProviderCoverage]:
    """Yield the coverage by each provider, for a network with static and declared shapes."""
    counts = count_operators(network)
    total = sum(counts.values())
    for provider, source, operators in _published_lists():
        unsupported = {name: count for name, count in counts.items() if name not in operators}
        yield ProviderCoverage(provider, total, source, unsupported)
    for provider, check in _ONNXRUNTIME_CHECKS.items():
        unlisted = {
            name.removeprefix("ai.onnx:").replace(":", ".")
            for name in check(network, True).unsupported_ops
        }
        unsupported = {name: count for name, count in counts.items() if name in unlisted}
        source = f"onnxruntime {onnxruntime.__version__}, mobile usability checker"
        yield ProviderCoverage(provider, total, source, unsupported)


def _check_core_ml(network: onnx.ModelProto, requires_static_shapes: bool) -> Any:
    return usability_checker.check_coreml_partitions(
        network, requires_static_shapes, "coreml_supported_mlprogram_ops.md"
    )


_ONNXRUNTIME_CHECKS: dict[str, _Check] = {
    "NNAPI": usability_checker.check_nnapi_partitions,
    "CoreML": _check_core_ml,
}


@cache
def _published_lists() -> tuple[tuple[str, str, Collection[str]], ...]:
    """Return (provider, source, operators) of each list in providers.toml."""
    text = files(__package__).joinpath("providers.toml").read_text(encoding="utf-8")
    return tuple(
        (provider, entry["source"], frozenset(entry["operators"]))
        for provider, entry in tomllib.loads(text).items()
    )
