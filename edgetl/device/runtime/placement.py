"""Check that onnxruntime placed a graph's compute nodes on the requested provider."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgetl.core.errors import ProviderError

if TYPE_CHECKING:
    import onnxruntime

RECORD_ASSIGNMENT_OPTION = "session.record_ep_graph_assignment_info"
"""Session option that makes a recent onnxruntime record its partitioning."""

COMPUTE_OPERATORS = frozenset(
    {
        *("Conv", "ConvTranspose", "FusedConv", "NhwcConv", "NhwcFusedConv"),
        *("ConvInteger", "QLinearConv", "NhwcQLinearConv", "QConv"),
        *("Gemm", "FusedGemm", "GemmFastGelu", "QGemm"),
        *(
            "MatMul",
            "FusedMatMul",
            "FusedMatMulActivation",
            "TransposeMatMul",
            "MatMulNBits",
            "MatMulBnb4",
            "MatMulFpQ4",
        ),
        *(
            "MatMulInteger",
            "MatMulInteger16",
            "MatMulIntegerToFloat",
            "DynamicQuantizeMatMul",
            "QLinearMatMul",
        ),
        *("Attention", "MultiHeadAttention", "GroupQueryAttention", "QAttention"),
    }
)
"""Operators that take most of a model's time, with onnxruntime's names of fused operators."""

_CPU_SHARING_PROVIDERS = frozenset({"XnnpackExecutionProvider"})
"""Providers that also run on the CPU, so that nodes on the CPU provider need no copies."""
_MAX_LISTED_NODES = 3


@dataclass(frozen=True)
class NodeAssignment:
    """Node of the graph with its execution provider (onnxruntime's name)."""

    name: str
    operator: str
    provider: str


def read_node_assignments(session: onnxruntime.InferenceSession) -> list[NodeAssignment] | None:
    """Return the assignments of a session; None if onnxruntime does not record them.

    The session must be created with `RECORD_ASSIGNMENT_OPTION`.
    """
    read_subgraphs = getattr(session, "get_provider_graph_assignment_info", None)
    if read_subgraphs is None:
        return None
    return [
        NodeAssignment(node.name, node.op_type, subgraph.ep_name)
        for subgraph in read_subgraphs()
        for node in subgraph.get_nodes()
    ]


def misplaced_nodes(
    assignments: Iterable[NodeAssignment], accepted_providers: Collection[str]
) -> list[NodeAssignment]:
    """Return the compute nodes on other providers than the accepted ones, in the graph's order."""
    return [
        node
        for node in assignments
        if node.operator in COMPUTE_OPERATORS and node.provider not in accepted_providers
    ]


def check_placement(assignments: Sequence[NodeAssignment], chain: Sequence[str]) -> None:
    """Check that all compute nodes are on the requested provider.

    Args:
        assignments: all nodes of the graph, from a session's record or its profile.
        chain: onnxruntime's names of the session's providers, the requested one first. Providers
            between it and the CPU are accepted too: nodes that TensorRT leaves to CUDA are on the
            GPU.

    Raises:
        ProviderError: compute nodes are on another provider.
    """
    cpu = "CPUExecutionProvider"
    wrong_nodes = misplaced_nodes(
        assignments, [name for name in chain if name != cpu or chain[0] == cpu]
    )
    total = sum(node.operator in COMPUTE_OPERATORS for node in assignments)
    if not wrong_nodes or (chain[0] in _CPU_SHARING_PROVIDERS and len(wrong_nodes) < total):
        return
    node_list = ", ".join(
        f"{node.operator} {node.name}".strip() for node in wrong_nodes[:_MAX_LISTED_NODES]
    )
    if len(wrong_nodes) > _MAX_LISTED_NODES:
        node_list += f" and {len(wrong_nodes) - _MAX_LISTED_NODES} more"
    providers = " and ".join(sorted({node.provider for node in wrong_nodes}))
    raise ProviderError(
        f"{chain[0]} did not take {len(wrong_nodes)} of {total} compute nodes; "
        f"{providers} got {node_list}. "
        "Results and timings would be a mix of both. "
        "Use another variant (fp32 runs on most providers), or --provider cpu."
    )


def provider_node_shares(providers: Iterable[str]) -> dict[str, float]:
    """Return the share of nodes on each provider, from the provider of each node."""
    counts = Counter(providers)
    return {provider: count / counts.total() for provider, count in sorted(counts.items())}
