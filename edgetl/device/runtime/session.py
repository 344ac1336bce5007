"""ONNX Runtime sessions that run where they were told to, or not at all."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import onnxruntime

from edgetl.core.errors import BundleError, ProviderError
from edgetl.device.hardware.cpu import available_cores
from edgetl.device.runtime.cuda_libraries import (
    find_missing_library,
    load_error,
    preload_cuda_libraries,
)
from edgetl.device.runtime.engine_cache import open_engine_cache
from edgetl.device.runtime.placement import (
    RECORD_ASSIGNMENT_OPTION,
    check_placement,
    read_node_assignments,
)
from edgetl.device.runtime.providers import CUDA_PROVIDERS, PROVIDERS, provider_chain

_RUN_EXCEPTION_NAMES = ("EPFail", "Fail", "RuntimeException", "RuntimeError")
"""onnxruntime's exceptions for a run that a provider did not finish (the last with IO binding); they share no base class."""
_CUDA_FAILURE_PATTERN = re.compile(r"CU\w+ failure \d+: [^;]*[^; ]")
_NODE_PATTERN = re.compile(r"while running (\w+) node\. Name:'([^']*)'")
_SOURCE_LOCATION_PATTERN = re.compile(
    r"^(?:\[ONNXRuntimeError\] : \d+ : \w+ : )?(?:Exception during initialization: )?(?:/\S+:\d+ .*?\) (?=[A-Z]))?"
)
_MAX_MESSAGE_LENGTH = 300


def available_providers() -> list[str]:
    """Short names of the execution providers in the installed onnxruntime."""
    installed = onnxruntime.get_available_providers()
    return [name for name, full in PROVIDERS.items() if full in installed]


def check_provider(provider: str) -> None:
    """Whether the installed onnxruntime knows a provider; whether it starts shows only a session.

    Raises:
        ProviderError: it does not, with those that it has.
    """
    if provider not in PROVIDERS:
        raise ProviderError(f"Unknown provider {provider!r}. Known: {', '.join(PROVIDERS)}.")
    if provider not in available_providers():
        raise ProviderError(
            f"The installed onnxruntime has no {PROVIDERS[provider]}; it has: {', '.join(available_providers())}. "
            "Install the onnxruntime package that brings it, or choose another --provider."
        )


def create_session(
    model: Path | bytes,
    provider: str = "cpu",
    threads: int | None = None,
    profile_prefix: Path | None = None,
    spinning: bool = True,
    precision: str | None = None,
    provider_options: Mapping[str, str] | None = None,
) -> onnxruntime.InferenceSession:
    """A session whose first provider is the one asked for, with the compute nodes on it, and that answers from nowhere else.

    Args:
        model: an ONNX file or its bytes.
        threads: intra-op threads; None takes the cores this process may use. Inter-op is always 1.
        spinning: onnxruntime's default: idle threads wait in a busy loop. False where PyTorch works in the same process, which it slows.
        profile_prefix: when given, onnxruntime's profiler is on and writes files that begin with this path.
        precision: of the file, as a bundle names it (fp32, fp16, int8); TensorRT computes in it. None is taken for fp32.
        provider_options: options of the provider, by onnxruntime's names; they add to those that are always set.

    Raises:
        ProviderError: the provider is unknown, not in this onnxruntime, or did not take the model or all of its compute nodes.
        BundleError: the file is not a model that this onnxruntime can load.
    """
    check_provider(provider)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or available_cores()
    options.inter_op_num_threads = 1
    # CUDA's errors are raised as well as logged; TensorRT says only in its log why it built no engine.
    options.log_severity_level = 4 if provider == "cuda" else 3
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_prefix)
    if provider == "xnnpack":
        # Its own pool does the work; onnxruntime's would spin beside it (onnxruntime's page on XNNPACK).
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if provider != "cpu":
        options.add_session_config_entry(RECORD_ASSIGNMENT_OPTION, "1")
    if provider in CUDA_PROVIDERS:
        preload_cuda_libraries()
    keeps_engines = provider in CUDA_PROVIDERS and provider != "cuda"
    cache = open_engine_cache(model, provider) if keeps_engines else None
    available = onnxruntime.get_available_providers()
    chain = provider_chain(provider, available, options.intra_op_num_threads, precision, cache)
    chain[0] = (chain[0][0], {**chain[0][1], **(provider_options or {})})
    content = model if isinstance(model, bytes) else str(model)
    try:
        # With its fall-back on, onnxruntime's Python class makes the session anew on the CPU when a provider fails, and answers.
        session = onnxruntime.InferenceSession(content, options, providers=chain, enable_fallback=0)
    except Exception as cause:  # onnxruntime's exceptions share no base class
        if provider != "cpu" and _can_load_on_cpu(content):
            raise ProviderError(_start_failure_message(provider, str(cause))) from cause
        name = "the model" if isinstance(model, bytes) else model
        raise BundleError(
            f"onnxruntime {onnxruntime.__version__} cannot load {name}: {cause}"
        ) from cause
    if session.get_providers()[0] != PROVIDERS[provider]:
        raise ProviderError(
            _start_failure_message(
                provider, f"onnxruntime gave {session.get_providers()[0]} in its place"
            )
        )
    if provider != "cpu":
        assignments = read_node_assignments(session)
        if assignments is None:
            warnings.warn(
                f"onnxruntime {onnxruntime.__version__} does not record where it places nodes; "
                f"that all of them run on {PROVIDERS[provider]} is not known.",
                stacklevel=2,
            )
        else:
            check_placement(assignments, [name for name, _ in chain])
    return session


def raise_provider_failure(session: onnxruntime.InferenceSession, cause: Exception) -> None:
    """Raise the error of a run that raised `cause` where a provider other than the CPU's failed; otherwise return.

    Raises:
        ProviderError: naming the provider, what it said, and the next step.
    """
    provider = session.get_providers()[0]
    if type(cause).__name__ not in _RUN_EXCEPTION_NAMES or provider == PROVIDERS["cpu"]:
        return
    raise ProviderError(
        f"{provider} took the model and then failed to run it: {_summarize_error(str(cause))} Nothing was answered from another provider. "
        "Take another variant or another --provider; `edgetl doctor` shows what this machine lacks."
    ) from cause


def _start_failure_message(provider: str, reason: str) -> str:
    library = find_missing_library(reason)
    if library is None and provider in CUDA_PROVIDERS:
        # onnxruntime logs what the loader said and keeps it to itself otherwise.
        name = f"libonnxruntime_providers_{provider}.so"
        library = find_missing_library(
            load_error(Path(onnxruntime.__file__).parent / "capi" / name)
        )
    lacking = f"{library} is missing." if library else _summarize_error(reason)
    return f"{PROVIDERS[provider]} did not start: {lacking} `edgetl doctor` shows what this machine lacks; nothing ran on the wrong device."


def _summarize_error(message: str) -> str:
    """Return the part of onnxruntime's message that says what happened, as one sentence."""
    node = _NODE_PATTERN.search(message)
    where = f"{node.group(1)} {node.group(2)}: " if node else ""
    sentence = " ".join(message.rpartition("Status Message: ")[2].split())
    if failure := _CUDA_FAILURE_PATTERN.search(sentence):
        return f"{where}{failure.group(0)}."
    sentence = _SOURCE_LOCATION_PATTERN.sub("", sentence)
    return where + sentence[:_MAX_MESSAGE_LENGTH].rstrip(". ") + "."


def _can_load_on_cpu(content: bytes | str) -> bool:
    """Tell whether a model that a provider refused is sound: then the provider is to blame and not the file."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(content, options, providers=[PROVIDERS["cpu"]])
    except Exception:  # as above
        return False
    return True
