"""Spellings of `edgetl bench` that are commands of their own now, named for one version."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_CANDIDATES = "edgetl candidates ARCHITECTURE..."
_LOADGEN = "edgetl loadgen TARGET --scenario SCENARIO"
_MOVED_OPTIONS = {
    "--candidates": _CANDIDATES,
    "--classes": _CANDIDATES,
    "--image-size": _CANDIDATES,
    "--latency-budget": _CANDIDATES,
    "--loadgen": _LOADGEN,
    "--loadgen-mode": _LOADGEN,
    "--data": _LOADGEN,
    "--min-duration": _LOADGEN,
    "--min-accuracy": _LOADGEN,
}


def describe_moved_option(arguments: Sequence[str]) -> str | None:
    """Return a message with the new command if the arguments of the program are an old spelling."""
    if arguments[:1] != ["bench"]:
        return None
    for argument in arguments[1:]:
        option = argument.partition("=")[0]
        if option in _MOVED_OPTIONS:
            return f"bench has no option {option}. Use `{_MOVED_OPTIONS[option]}`."
        if _is_architecture(argument):
            return (
                f"bench needs a run, a bundle or an ONNX file, got the architecture {argument}. "
                f"Use `edgetl candidates {argument}`."
            )
    return None


def _is_architecture(argument: str) -> bool:
    if argument.startswith("-") or Path(argument).exists():
        return False
    from edgetl.core.architectures import load_architectures

    return argument in load_architectures()
