"""Nodes of an ONNX file by execution provider."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from edgetl.core.errors import BundleError, ProviderError
from edgetl.device.runtime.placement import read_node_assignments
from edgetl.device.runtime.session import create_session


def count_nodes(
    model: Path, provider: str, precision: str | None
) -> tuple[dict[str, int], str | None]:
    """Open a file on a provider and count its nodes by onnxruntime's names of the providers.

    Args:
        model: an ONNX file.
        provider: short name of a provider other than the CPU's.
        precision: precision of the file.

    Returns:
        (counts, None), or (no counts, the reason if the provider does not take all compute nodes or
        this onnxruntime does not record the assignment).
    """
    try:
        session = create_session(model, provider, precision=precision)
    except (ProviderError, BundleError) as error:
        return {}, str(error)
    assignments = read_node_assignments(session)
    if assignments is None:
        return {}, "this onnxruntime does not record where it places nodes"
    return dict(Counter(node.provider for node in assignments)), None
