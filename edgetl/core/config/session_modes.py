"""Session modes that the benchmark compares: named sets of provider options."""

from __future__ import annotations

from collections.abc import Mapping

DEFAULT_MODE = "default"
CUDA_GRAPH_MODE = "cuda-graph"
_MODE_OPTIONS: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "cuda": {
        CUDA_GRAPH_MODE: {"enable_cuda_graph": "1"},
        "no-tf32": {"use_tf32": "0"},
    },
}
"""onnxruntime's provider options by provider and mode (its page "CUDA Execution Provider")."""


def has_session_mode(provider: str, mode: str) -> bool:
    """Return whether a provider has a session mode; all of them have `default`."""
    return mode == DEFAULT_MODE or mode in _MODE_OPTIONS.get(provider, {})


def providers_with_mode(mode: str) -> list[str]:
    """Return the providers that have a session mode other than `default`."""
    return [provider for provider, modes in _MODE_OPTIONS.items() if mode in modes]


def provider_options(provider: str, mode: str) -> dict[str, str]:
    """Return the provider options of a supported session mode; none for `default`."""
    return dict(_MODE_OPTIONS.get(provider, {}).get(mode, {}))


def variant_name(variant: str, mode: str) -> str:
    """Return the name of a row's variant in a session mode: `fp32`, `fp32-cuda-graph`."""
    return variant if mode == DEFAULT_MODE else f"{variant}-{mode}"
