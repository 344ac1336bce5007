"""Runtimes that run a bundle's variants: name, package and session class.

A new runtime is a session class (see `edgetl.device.runtime.sessions.session`) and a row in
`RUNTIMES`; a format that has to be converted also gets a row in `edgetl.core.registry.FORMATS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec

from edgetl.core.errors import ConfigError

ONNXRUNTIME = "onnxruntime"


@dataclass(frozen=True)
class Runtime:
    """A runtime for inference."""

    title: str
    """Name that its project uses."""
    module: str
    """Module to import; the runtime is installed if there is such a module."""
    session: str | None
    """Class of its sessions, "module:class"; None for ONNX Runtime, which has its own."""
    reads_onnx: bool = False
    """Whether it also runs the ONNX variants of a bundle."""
    suffixes: tuple[str, ...] = ()
    """Suffixes of the files of a variant, the one to open first."""
    channels_last: bool = False
    """Whether the network's input is stored as [batch, S, S, 3]."""


RUNTIMES = {
    ONNXRUNTIME: Runtime("ONNX Runtime", "onnxruntime", None, reads_onnx=True, suffixes=(".onnx",)),
    "openvino": Runtime(
        "OpenVINO",
        "openvino",
        "edgetl.device.runtime.sessions.openvino_session:OpenVinoSession",
        reads_onnx=True,
        suffixes=(".xml", ".bin"),
    ),
    "litert": Runtime(
        "LiteRT",
        "ai_edge_litert",
        "edgetl.device.runtime.sessions.litert_session:LiteRtSession",
        suffixes=(".tflite",),
        channels_last=True,
    ),
    "executorch": Runtime(
        "ExecuTorch",
        "executorch",
        "edgetl.device.runtime.sessions.executorch_session:ExecuTorchSession",
        suffixes=(".pte",),
    ),
    "ncnn": Runtime(
        "ncnn",
        "ncnn",
        "edgetl.device.runtime.sessions.ncnn_session:NcnnSession",
        suffixes=(".param", ".bin"),
    ),
}
"""Runtimes by name, in the order of tables."""


def check_runtime(name: str | None) -> None:
    """Check the name of a runtime; None is accepted.

    Raises:
        ConfigError: There is no such runtime.
    """
    if name is not None and name not in RUNTIMES:
        raise ConfigError(f"Unknown runtime {name!r}. Use one of {', '.join(RUNTIMES)}.")


def is_installed(runtime: str) -> bool:
    """Return whether the package of a runtime is installed; nothing is imported."""
    module = RUNTIMES[runtime].module
    spec = find_spec(module)
    if spec is None or spec.origin is not None:
        return spec is not None
    # A package without __init__.py, such as executorch, or any folder of this name, for example
    # with models, in the working directory.
    try:
        metadata.distribution(module)
    except metadata.PackageNotFoundError:
        return False
    return True


def installed_runtimes() -> list[str]:
    """Return the names of the installed runtimes."""
    return [name for name in RUNTIMES if is_installed(name)]
