"""Where onnxruntime placed the nodes of a graph, and whether the provider asked for got those that compute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import onnxruntime

from edgetl.core.errors import ProviderError

RECORD_ASSIGNMENT_OPTION = "session.record_ep_graph_assignment_info"
"""The session option with which a recent onnxruntime records its partitioning."""

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
"""The operators in which a network's time goes, by ONNX's names and by those that onnxruntime gives to fused ones."""

_CPU_SHARING_PROVIDERS = frozenset({"XnnpackExecutionProvider"})
"""Providers that compute on the CPU too: a node left to the CPU's own provider is no copy and no wrong device."""
_MAX_LISTED_NODES = 3


@dataclass(frozen=True)
class NodeAssignment:
    """One node of the graph and the execution provider that got it, by onnxruntime's name."""

    name: str
    operator: str
    provider: str


def read_node_assignments(session: onnxruntime.InferenceSession) -> list[NodeAssignment] | None:
    """Return the assignments of a session that was created with `RECORD`; None from an onnxruntime that does not record them."""
    read = getattr(session, "get_provider_graph_assignment_info", None)
    if read is None:
        return None
    return [
        NodeAssignment(node.name, node.op_type, part.ep_name)
        for part in read()
        for node in part.get_nodes()
    ]


def misplaced_nodes(
    assignments: Iterable[NodeAssignment], accepted: Collection[str]
) -> list[NodeAssignment]:
    """Return the compute nodes that none of the accepted providers (onnxruntime's names) got, in the graph's order."""
    return [
        node
        for node in assignments
        if node.operator in COMPUTE_OPERATORS and node.provider not in accepted
    ]


def check_placement(assignments: Sequence[NodeAssignment], chain: Sequence[str]) -> None:
    """Refuse a session whose compute nodes are not on the provider asked for.

    Args:
        assignments: of the whole graph; from a session's record or from its profile.
        chain: the session's providers by onnxruntime's names, the one asked for first. Those between it and the CPU count as
            asked for: nodes that TensorRT leaves to CUDA are on the GPU.

    Raises:
        ProviderError: with the first nodes, their number and the next step.
    """
    cpu = "CPUExecutionProvider"
    misplaced = misplaced_nodes(
        assignments, [name for name in chain if name != cpu or chain[0] == cpu]
    )
    total = sum(node.operator in COMPUTE_OPERATORS for node in assignments)
    if not misplaced or (chain[0] in _CPU_SHARING_PROVIDERS and len(misplaced) < total):
        return
    listed = ", ".join(
        f"{node.operator} {node.name}".strip() for node in misplaced[:_MAX_LISTED_NODES]
    )
    more = (
        f" and {len(misplaced) - _MAX_LISTED_NODES} more"
        if len(misplaced) > _MAX_LISTED_NODES
        else ""
    )
    places = " and ".join(sorted({node.provider for node in misplaced}))
    raise ProviderError(
        f"{chain[0]} did not take {len(misplaced)} of {total} compute nodes; {places} got {listed}{more}. "
        "Answers and times would be those of both. Take another variant (fp32 runs on most providers), "
        "or --provider cpu."
    )


def provider_node_shares(providers: Iterable[str]) -> dict[str, float]:
    """Return the share of nodes on each provider, from one provider's name a node."""
    counts = Counter(providers)
    return {provider: count / counts.total() for provider, count in sorted(counts.items())}
