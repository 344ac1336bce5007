"""Create ONNX Runtime sessions on a requested provider, without fallback to another."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgetl.core.artifacts.model_metadata import ModelMetadata, SplitFiles
from edgetl.core.config.session_modes import DEFAULT_MODE, ModeOptions, mode_options
from edgetl.core.errors import BundleError, ProviderError
from edgetl.device.hardware.cpu import available_cores
from edgetl.device.hardware.info import has_int8_dot_product
from edgetl.device.runtime.cuda_libraries import (
    find_missing_library,
    load_error,
    preload_cuda_libraries,
)
from edgetl.device.runtime.engine_cache import open_engine_cache
from edgetl.device.runtime.onnx_file import (
    OnnxFileError,
    read_properties,
    read_without_activation_maps,
)
from edgetl.device.runtime.optimized_model_cache import find_optimized_model
from edgetl.device.runtime.placement import (
    RECORD_ASSIGNMENT_OPTION,
    check_placement,
    read_node_assignments,
)
from edgetl.device.runtime.providers import CUDA_PROVIDERS, PROVIDERS, provider_chain
from edgetl.device.runtime.split_session import SplitSession

if TYPE_CHECKING:
    import onnxruntime

_RUN_EXCEPTION_NAMES = ("EPFail", "Fail", "RuntimeException", "RuntimeError")
"""onnxruntime's exceptions for a failed run, the last with IO binding. They share no base class."""
_CUDA_FAILURE_PATTERN = re.compile(r"CU\w+ failure \d+: [^;]*[^; ]")
_NODE_PATTERN = re.compile(r"while running (\w+) node\. Name:'([^']*)'")
_SOURCE_LOCATION_PATTERN = re.compile(
    r"^(?:\[ONNXRuntimeError\] : \d+ : \w+ : )?(?:Exception during initialization: )?"
    r"(?:/\S+:\d+ .*?\) (?=[A-Z]))?"
)
_MAX_MESSAGE_LENGTH = 300


def available_providers() -> list[str]:
    """Return the short names of the execution providers in the installed onnxruntime."""
    import onnxruntime

    ort_names = onnxruntime.get_available_providers()
    return [name for name, ort_name in PROVIDERS.items() if ort_name in ort_names]


def check_provider(provider: str) -> None:
    """Check that the installed onnxruntime contains a provider. It may still fail to start.

    Raises:
        ProviderError: the provider is unknown or not in this onnxruntime.
    """
    if provider not in PROVIDERS:
        raise ProviderError(f"Unknown provider {provider!r}. Known: {', '.join(PROVIDERS)}.")
    if provider not in available_providers():
        raise ProviderError(
            f"The installed onnxruntime has no {PROVIDERS[provider]}. "
            f"Available: {', '.join(available_providers())}. "
            "Install the onnxruntime package with it, or use another --provider."
        )


def create_session(
    model: Path | bytes,
    provider: str = "cpu",
    threads: int | None = None,
    profile_prefix: Path | None = None,
    spinning: bool = True,
    precision: str | None = None,
    session_mode: str = DEFAULT_MODE,
    activation_maps: bool = False,
    int8_kernels: bool = True,
) -> onnxruntime.InferenceSession:
    """Create a session with all compute nodes on the requested provider, without fallback.

    If the metadata of an ONNX file name files that run before and after it, they run on the CPU.

    Args:
        model: an ONNX file or its bytes.
        provider: short name of the execution provider.
        threads: intra-op threads; None uses all available cores. Inter-op is always 1.
        profile_prefix: enables onnxruntime's profiler, whose files start with this path.
        spinning: let idle threads wait in a busy loop, onnxruntime's default. Use False if PyTorch
            runs in the same process, which it slows down.
        precision: precision of the file as in a bundle (fp32, fp16, int8), in which TensorRT
            computes; None for fp32.
        session_mode: a mode of the provider; `optimized-model` is the default without a cache.
        activation_maps: keep the output `activation_maps` of a file that has it. Otherwise it is
            removed: onnxruntime computes all outputs of a graph, requested or not
            (`RunOptions.only_execute_path_to_fetches` works only in its training builds).
        int8_kernels: use onnxruntime's int8 kernels. Otherwise QDQ files are computed in float32,
            with values rounded where the file says so.

    Raises:
        ProviderError: the provider is unknown, not in this onnxruntime, did not start, or did not
            take all compute nodes.
        BundleError: this onnxruntime cannot load the file.
    """
    import onnxruntime

    check_provider(provider)
    split = _read_split(model) if isinstance(model, Path) else None
    if isinstance(model, Path) and split is not None:
        return _create_split_session(
            model, split, provider, threads, profile_prefix, spinning, precision, session_mode
        )
    name = "the model" if isinstance(model, bytes) else model
    if isinstance(model, Path) and not activation_maps:
        # onnxruntime reports files that cannot be read.
        with contextlib.suppress(OSError, OnnxFileError):
            model = read_without_activation_maps(model) or model
    mode = mode_options(provider, session_mode)
    options = _session_options(provider, threads, profile_prefix, spinning, int8_kernels)
    if provider in CUDA_PROVIDERS:
        preload_cuda_libraries()
    has_engine_cache = provider in CUDA_PROVIDERS and provider != "cuda"
    cache = open_engine_cache(model, provider) if has_engine_cache else None
    available = onnxruntime.get_available_providers()
    chain = provider_chain(provider, available, options.intra_op_num_threads, precision, cache)
    chain[0] = (chain[0][0], {**chain[0][1], **mode.provider})
    optimized_model = _apply_session_mode(model, mode, options)
    file = optimized_model or model
    content = file if isinstance(file, bytes) else str(file)
    try:
        # With fallback, onnxruntime's Python class silently recreates the session on the CPU when
        # a provider fails.
        session = onnxruntime.InferenceSession(content, options, providers=chain, enable_fallback=0)
    except Exception as cause:  # onnxruntime's exceptions share no base class
        if optimized_model is not None:
            optimized_model.unlink(missing_ok=True)  # it is written again the next time
            return create_session(
                model,
                provider,
                threads,
                profile_prefix,
                spinning,
                precision,
                int8_kernels=int8_kernels,
            )
        raise _load_error(content, name, provider, cause) from cause
    _check_session_provider(session, provider, [name for name, _ in chain])
    return session


def _load_error(
    content: bytes | str, name: Path | str, provider: str, cause: Exception
) -> ProviderError | BundleError:
    import onnxruntime

    if provider != "cpu" and _can_load_on_cpu(content):
        return ProviderError(_start_failure_message(provider, str(cause)))
    return BundleError(f"onnxruntime {onnxruntime.__version__} cannot load {name}: {cause}")


def _apply_session_mode(
    model: Path | bytes, mode: ModeOptions, options: onnxruntime.SessionOptions
) -> Path | None:
    """Set the options of a mode. Return the optimized model to load, None for the model itself."""
    optimized_model = find_optimized_model(model) if mode.loads_optimized_model else None
    if optimized_model is not None or not mode.loads_optimized_model:
        for key, value in mode.session.items():
            options.add_session_config_entry(key, value)
    return optimized_model


def _check_session_provider(
    session: onnxruntime.InferenceSession, provider: str, chain: Sequence[str]
) -> None:
    first_provider = session.get_providers()[0]
    if first_provider != PROVIDERS[provider]:
        raise ProviderError(
            _start_failure_message(provider, f"onnxruntime used {first_provider} instead")
        )
    if provider != "cpu":
        _check_assignments(session, provider, chain)


def _check_assignments(
    session: onnxruntime.InferenceSession, provider: str, chain: Sequence[str]
) -> None:
    import onnxruntime

    assignments = read_node_assignments(session)
    if assignments is None:
        warnings.warn(
            f"onnxruntime {onnxruntime.__version__} does not record where it places nodes; "
            f"cannot check that all of them run on {PROVIDERS[provider]}.",
            stacklevel=3,
        )
    else:
        check_placement(assignments, chain)


def _read_split(path: Path) -> SplitFiles | None:
    try:
        properties = read_properties(path)
    except (OSError, OnnxFileError):  # onnxruntime reports files that cannot be read
        return None
    if "edgetl.split" not in properties:
        return None
    metadata = ModelMetadata.from_properties(properties)
    return None if metadata is None else metadata.split


def _create_split_session(
    network: Path,
    split: SplitFiles,
    provider: str,
    threads: int | None,
    profile_prefix: Path | None,
    spinning: bool,
    precision: str | None,
    session_mode: str,
) -> SplitSession:
    if provider in CUDA_PROVIDERS:
        raise ProviderError(
            f"{network.name} is made for NPUs, and edgetl does not run it on "
            f"{PROVIDERS[provider]}. Use another variant."
        )
    names = (split.preprocessing, network.name, split.postprocessing)
    try:
        # Bytes are never split again.
        before, content, after = (network.with_name(name).read_bytes() for name in names)
    except OSError as cause:
        raise BundleError(
            f"{network.name} needs {split.preprocessing} and {split.postprocessing} in the same "
            f"folder ({cause.strerror or cause}). Copy the bundle again."
        ) from cause
    return SplitSession(
        create_session(before, threads=threads, spinning=False),
        create_session(
            content,
            provider,
            threads,
            profile_prefix,
            spinning,
            precision,
            session_mode,
            # Networks for NPUs have 8-bit weights, with which other CPUs overflow.
            int8_kernels=provider != "cpu" or has_int8_dot_product(),
        ),
        create_session(after, threads=threads, spinning=False),
    )


def _session_options(
    provider: str,
    threads: int | None,
    profile_prefix: Path | None,
    spinning: bool,
    int8_kernels: bool,
) -> onnxruntime.SessionOptions:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or available_cores()
    options.inter_op_num_threads = 1
    # CUDA's errors are both raised and logged. TensorRT only logs why it did not build an engine.
    options.log_severity_level = 4 if provider == "cuda" else 3
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not int8_kernels:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_prefix)
    if provider == "xnnpack":
        # XNNPACK has its own pool, and onnxruntime's would spin beside it (its page on XNNPACK).
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if provider != "cpu":
        options.add_session_config_entry(RECORD_ASSIGNMENT_OPTION, "1")
    return options


def read_metadata(session: onnxruntime.InferenceSession) -> ModelMetadata | None:
    """Return edgetl's metadata of the model; None if another program wrote it.

    Raises:
        BundleError: the metadata are broken.
    """
    try:
        properties = session.get_modelmeta().custom_metadata_map
    except UnicodeDecodeError as cause:
        raise BundleError(
            f"The metadata of the ONNX file are not UTF-8 ({cause}). Export it again."
        ) from cause
    return ModelMetadata.from_properties(properties)


def raise_provider_failure(session: onnxruntime.InferenceSession, cause: Exception) -> None:
    """Raise ProviderError if `cause` is the failure of a provider other than the CPU's.

    Raises:
        ProviderError: contains the provider, its error message and the next step.
    """
    provider = session.get_providers()[0]
    if type(cause).__name__ not in _RUN_EXCEPTION_NAMES or provider == PROVIDERS["cpu"]:
        return
    raise ProviderError(
        f"{provider} loaded the model but failed to run it: {_summarize_error(str(cause))} "
        "Nothing ran on another provider. Use another variant or another --provider; "
        "`edgetl doctor` shows what is missing on this machine."
    ) from cause


def _start_failure_message(provider: str, reason: str) -> str:
    import onnxruntime

    library = find_missing_library(reason)
    if library is None and provider in CUDA_PROVIDERS:
        # onnxruntime only logs the loader's message.
        name = f"libonnxruntime_providers_{provider}.so"
        library = find_missing_library(
            load_error(Path(onnxruntime.__file__).parent / "capi" / name)
        )
    problem = f"{library} is missing." if library else _summarize_error(reason)
    return (
        f"{PROVIDERS[provider]} did not start: {problem} `edgetl doctor` shows what is missing on "
        "this machine. Nothing ran on another provider."
    )


def _summarize_error(message: str) -> str:
    """Return the informative part of onnxruntime's message as one sentence."""
    node = _NODE_PATTERN.search(message)
    prefix = f"{node.group(1)} {node.group(2)}: " if node else ""
    sentence = " ".join(message.rpartition("Status Message: ")[2].split())
    if failure := _CUDA_FAILURE_PATTERN.search(sentence):
        return f"{prefix}{failure.group(0)}."
    sentence = _SOURCE_LOCATION_PATTERN.sub("", sentence)
    return prefix + sentence[:_MAX_MESSAGE_LENGTH].rstrip(". ") + "."


def _can_load_on_cpu(content: bytes | str) -> bool:
    """Return whether the CPU provider loads the model, so that the other provider is at fault."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(content, options, providers=[PROVIDERS["cpu"]])
    except Exception:  # onnxruntime's exceptions share no base class
        return False
    return True
