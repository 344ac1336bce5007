"""Configuration of a benchmark's runtime, and profiles of its operators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from edgetl.core.typed_json import in_json

_OPTIONAL = in_json(omit_default=True)


@dataclass(frozen=True)
class SessionRecord:
    """Effective configuration of a runtime; None for settings that it does not have."""

    intra_op_threads: int | None = field(default=None, metadata=_OPTIONAL)
    inter_op_threads: int | None = field(default=None, metadata=_OPTIONAL)
    freed_memory_kept: bool | None = field(default=None, metadata=_OPTIONAL)
    """Whether glibc keeps freed memory in the process."""
    feed: str | None = field(default=None, metadata=_OPTIONAL)
    """Origin of the inputs in scope `model`: reference images, random or given."""
    input: str | None = field(default=None, metadata=_OPTIONAL)
    """Type and shape of the input; only of timed architectures, whose rows lack it."""

    runtime_version: str | None = field(default=None, metadata=_OPTIONAL)
    """Version of a runtime other than ONNX Runtime and PyTorch."""
    precision: str | None = field(default=None, metadata=_OPTIONAL)
    """Precision of most convolutions and matrix products: fp32, bf16, fp16 or int8. Other runtimes
    report it; for ONNX Runtime it is the file's."""
    precision_shares: Mapping[str, float] | None = field(default=None, metadata=_OPTIONAL)
    """Share of the convolutions and matrix products by precision, as the runtime reports it."""
    runtime_options: Mapping[str, str] | None = field(default=None, metadata=_OPTIONAL)
    """Options of a runtime other than ONNX Runtime, by its names."""

    onnxruntime: str | None = field(default=None, metadata=_OPTIONAL)
    """Version."""
    graph_optimization: str | None = field(default=None, metadata=_OPTIONAL)
    providers: tuple[str, ...] | None = field(default=None, metadata=_OPTIONAL)
    """onnxruntime's names of the execution providers, by priority."""
    provider_options: Mapping[str, str] | None = field(default=None, metadata=_OPTIONAL)
    session_options: Mapping[str, str] | None = field(default=None, metadata=_OPTIONAL)
    """Entries of the session's configuration that the session mode sets."""
    session_mode: str | None = field(default=None, metadata=_OPTIONAL)
    """Named set of session and provider options; None is the default."""
    io_binding: bool | None = field(default=None, metadata=_OPTIONAL)
    node_share: Mapping[str, float] | None = field(default=None, metadata=_OPTIONAL)
    """Share of the nodes by execution provider."""

    torch: str | None = field(default=None, metadata=_OPTIONAL)
    """Version."""
    mode: str | None = field(default=None, metadata=_OPTIONAL)
    dtype: str | None = field(default=None, metadata=_OPTIONAL)
    tf32: bool | None = field(default=None, metadata=_OPTIONAL)
    cuda_graph: bool | None = field(default=None, metadata=_OPTIONAL)
    compile_arguments: Mapping[str, str] | None = field(default=None, metadata=_OPTIONAL)
    """Arguments of torch.compile; None if the model was not compiled."""
    device: str | None = field(default=None, metadata=_OPTIONAL)
    mkldnn: bool | None = field(default=None, metadata=_OPTIONAL)
    capability: str | None = field(default=None, metadata=_OPTIONAL)
    """Instruction set that PyTorch uses on the CPU."""
    memory_format: str | None = field(default=None, metadata=_OPTIONAL)
    """Memory format that was faster on this device."""


@dataclass(frozen=True)
class ProfiledOperator:
    """Time of all nodes with one operator and provider."""

    operator: str
    provider: str
    nodes: int
    us: float
    """Microseconds an inference."""
    share: float
    """Share of the time of all operators."""


@dataclass(frozen=True)
class ProfiledNode:
    """Time of one node of the graph after the runtime's fusions."""

    node: str
    operator: str
    provider: str
    us: float
    """Microseconds an inference: the median, which ignores runs delayed by other processes."""
    share: float
    """Share of the time of all nodes."""


@dataclass(frozen=True)
class OperatorProfile:
    """Times by operator and by node, slowest first."""

    runs: int
    """Number of profiled inferences."""
    operators: tuple[ProfiledOperator, ...]
    nodes: tuple[ProfiledNode, ...]
    """Empty if the runtime does not report nodes."""
    clock: Literal["gpu", "host", "host dispatch"] | None = field(default=None, metadata=_OPTIONAL)
    """Meaning of the times, see `edgetl.core.formatting.PROFILE_CLOCK_DESCRIPTIONS`; None in older
    results."""
    rows: Literal["operators", "kernels"] = field(default="operators", metadata=_OPTIONAL)
    """Kind of the entries of `operators`."""
