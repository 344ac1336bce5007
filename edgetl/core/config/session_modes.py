"""Session modes that the benchmark compares: named sets of ONNX Runtime's options.

Decision 021 lists the options that were measured and left out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from edgetl.core.config.torch_modes import BF16_TOLERANCE

SessionMode = Literal[
    "default",
    "no-spinning",
    "optimized-model",
    "bf16-fastmath",
    "cuda-graph",
    "no-tf32",
    "all",
]
DEFAULT_MODE = "default"
CUDA_GRAPH_MODE = "cuda-graph"
ALL_MODES = "all"
"""Word for all modes that apply to a configuration."""


@dataclass(frozen=True)
class ModeOptions:
    """Options of one session mode on one provider, by onnxruntime's names."""

    session: Mapping[str, str] = field(default_factory=dict)
    """Entries for `SessionOptions.add_session_config_entry`; they are explained in
    onnxruntime_session_options_config_keys.h."""
    provider: Mapping[str, str] = field(default_factory=dict)
    """Options of the execution provider."""
    loads_optimized_model: bool = False
    """Whether the session loads the optimized graph from a cache on disk."""
    min_threads: int = 1
    """Least number of threads with which the mode differs from the default."""
    cpu_flag: str = ""
    """Instruction set that the mode needs, by the kernel's name."""
    precision: str = ""
    """Precision of the files to which the mode applies; all if empty."""
    computes_in: str = ""
    """Precision of matrix products, if it is not the file's."""
    relative_tolerance: float = 0.0
    """Allowed difference of logits as a share of the largest |logit|, beside that of the file."""


_NO_OPTIONS = ModeOptions()
_MODE_OPTIONS: Mapping[str, Mapping[str, ModeOptions]] = {
    "cpu": {
        # Idle threads of the pool sleep instead of waiting in a busy loop.
        "no-spinning": ModeOptions({"session.intra_op.allow_spinning": "0"}, min_threads=2),
        # Weights are used where the file is mapped, without a copy.
        "optimized-model": ModeOptions(
            {
                "session.load_model_format": "ORT",
                "session.use_memory_mapped_ort_model": "1",
                "session.use_ort_model_bytes_for_initializers": "1",
            },
            loads_optimized_model=True,
        ),
        "bf16-fastmath": ModeOptions(
            {"mlas.enable_gemm_fastmath_arm64_bfloat16": "1"},
            cpu_flag="bf16",
            precision="fp32",
            computes_in="bf16",
            relative_tolerance=BF16_TOLERANCE,
        ),
    },
    "cuda": {
        CUDA_GRAPH_MODE: ModeOptions(provider={"enable_cuda_graph": "1"}),
        "no-tf32": ModeOptions(provider={"use_tf32": "0"}),
    },
}


def has_session_mode(provider: str, mode: str) -> bool:
    """Return whether a provider has a session mode; all of them have `default`."""
    return mode in (DEFAULT_MODE, ALL_MODES) or mode in _MODE_OPTIONS.get(provider, {})


def providers_with_mode(mode: str) -> list[str]:
    """Return the providers that have a session mode other than `default`."""
    return [provider for provider, modes in _MODE_OPTIONS.items() if mode in modes]


def list_session_modes(requested: Iterable[str], providers: Iterable[str]) -> list[str]:
    """Return the session modes to measure, `all` replaced by those of the providers."""
    modes: dict[str, None] = {}
    for mode in requested:
        if mode == ALL_MODES:
            modes[DEFAULT_MODE] = None
            modes |= {name: None for item in providers for name in _MODE_OPTIONS.get(item, {})}
        else:
            modes[mode] = None
    return list(modes)


def mode_options(provider: str, mode: str) -> ModeOptions:
    """Return the options of a supported session mode; none for `default`."""
    return _MODE_OPTIONS.get(provider, {}).get(mode, _NO_OPTIONS)


def find_mode_obstacle(
    provider: str, mode: str, threads: int, precision: str | None, cpu_flags: Collection[str]
) -> str | None:
    """Return why a session mode cannot be used or equals the default; None if it applies.

    Args:
        provider: short name of the execution provider.
        mode: name of the mode.
        threads: intra-op threads.
        precision: precision of the file; None if unknown.
        cpu_flags: the CPU's instruction sets by the kernel's names.
    """
    if not has_session_mode(provider, mode):
        return f"on {provider}, which does not support it"
    options = mode_options(provider, mode)
    if threads < options.min_threads:
        return f"with {threads} thread, where it equals the default"
    if options.cpu_flag and options.cpu_flag not in cpu_flags:
        return f"on this CPU, which lacks {options.cpu_flag}"
    if options.precision and precision not in (None, options.precision):
        return f"for {precision} files"
    return None


def variant_name(variant: str, mode: str) -> str:
    """Return the name of a row's variant in a session mode: `fp32`, `fp32-cuda-graph`."""
    return variant if mode == DEFAULT_MODE else f"{variant}-{mode}"
