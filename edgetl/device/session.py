"""ONNX Runtime sessions that run where they were told to, or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

# onnxruntime reads this when it is imported; a tool that measures devices does not phone home from them.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

from edgetl.core.errors import BundleError, ProviderError
from edgetl.device.cores import available_cores

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "qnn": "QNNExecutionProvider",
}
"""The names that users type, and onnxruntime's own."""


_OWN_THREADS = {"openvino": "num_of_threads", "xnnpack": "intra_op_num_threads"}
"""Providers with a thread pool of their own, and the option that sizes it."""


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
    provider_options: Mapping[str, str] | None = None,
) -> onnxruntime.InferenceSession:
    """A session whose first provider is the one asked for.

    Args:
        model: an ONNX file or its bytes.
        threads: intra-op threads; None takes the cores this process may use. Inter-op is always 1.
        spinning: onnxruntime's default: idle threads wait in a busy loop. False where PyTorch works in the same process, which it slows.
        profile_prefix: when given, onnxruntime's profiler is on and writes files that begin with this path.
        provider_options: options of the provider, by onnxruntime's names; they add to those that are always set.

    Raises:
        ProviderError: the provider is unknown, not in this onnxruntime, or did not take the model.
        BundleError: the file is not a model that this onnxruntime can load.
    """
    check_provider(provider)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or available_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_prefix)
    chosen = [PROVIDERS[provider]] + ([] if provider == "cpu" else [PROVIDERS["cpu"]])
    count = options.intra_op_num_threads
    own: list[dict[str, str]] = [{name: str(count) for name in (_OWN_THREADS.get(provider),) if name}] + [{}] * (len(chosen) - 1)
    own[0] |= provider_options or {}
    if provider == "xnnpack":
        # Its own pool does the work; onnxruntime's would spin beside it (onnxruntime's page on XNNPACK).
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=chosen, provider_options=own
        )
    except Exception as cause:  # onnxruntime's exceptions share no base class
        name = "the model" if isinstance(model, bytes) else model
        raise BundleError(f"onnxruntime {onnxruntime.__version__} cannot load {name}: {cause}") from cause
    if session.get_providers()[0] != PROVIDERS[provider]:
        raise ProviderError(
            f"{PROVIDERS[provider]} did not start and onnxruntime fell back to {session.get_providers()[0]}. "
            "`edgetl doctor` shows what this machine lacks; nothing ran on the wrong device."
        )
    return session
