"""CUDA's shared libraries: loading them ahead of a session, and naming the package that brings a missing one.

onnxruntime's CUDA provider has no search path of its own (no RUNPATH), and pip installs NVIDIA's libraries where the system's
loader does not look. What is loaded already is not searched for, so the libraries are loaded by path first.
"""

from __future__ import annotations

import ctypes
import io
import os
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from functools import cache
from importlib import metadata
from pathlib import Path

# Packages for CUDA 13 and later have no suffix; those for CUDA 12, and all of cuDNN and TensorRT, end in -cu and its version.
_LIBRARY_PACKAGES = {
    "libcublasLt": "nvidia-cublas",
    "libcublas": "nvidia-cublas",
    "libcudart": "nvidia-cuda-runtime",
    "libcudnn": "nvidia-cudnn",
    "libcufft": "nvidia-cufft",
    "libcurand": "nvidia-curand",
    "libnvinfer": "tensorrt",
    "libnvonnxparser": "tensorrt",
    "libnvrtc": "nvidia-cuda-nvrtc",
}
_LIBRARY_PATTERN = re.compile(r"\b(lib[A-Za-z]+)[\w-]*\.so(?:\.(\d+)[.\d]*)?")
_DRIVER_REMEDY = "install NVIDIA's driver for this GPU; `nvidia-smi` shows whether it works"


def preload_cuda_libraries() -> None:
    """Load the libraries that onnxruntime's CUDA and TensorRT providers link to, once a process.

    onnxruntime's own `preload_dlls` looks in the site-packages that hold onnxruntime and at the loader's paths. What it leaves
    out is taken from NVIDIA's wheels anywhere on `sys.path` (`pip install --target`, a system's packages beside a virtual
    environment). What is loaded already, by torch for one, or lies on LD_LIBRARY_PATH is not loaded from a wheel: a second copy
    of a library has a state of its own. Nothing is printed and nothing is raised: a session says what lacks.
    """
    _preload()


@cache
def _preload() -> None:
    import onnxruntime

    version = str(getattr(onnxruntime, "cuda_version", "") or "")
    if not version:
        return
    if not sys.platform.startswith("linux"):
        _preload_by_onnxruntime(onnxruntime)
        return
    sonames = _sonames(int(version.partition(".")[0]))
    for soname in sonames:
        _load_from(soname, _loader_folders())
    if not any(is_loaded(soname) for soname in sonames):
        _preload_by_onnxruntime(onnxruntime)
    for soname in sonames:
        _load_from(soname, wheel_folders())


def _preload_by_onnxruntime(onnxruntime: object) -> None:
    # Absent before onnxruntime 1.21.
    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is not None:
        # It prints what it does not find.
        with redirect_stdout(io.StringIO()), suppress(Exception):
            preload()


def _sonames(cuda: int) -> tuple[str, ...]:
    """Names of the libraries in the order of their dependence; those of TensorRT are found if it is installed by pip."""
    return (
        f"libcublasLt.so.{cuda}",
        f"libcublas.so.{cuda}",
        f"libnvrtc.so.{cuda}",
        "libcurand.so.10",
        f"libcufft.so.{cuda - 1}",
        f"libcudart.so.{cuda}",
        "libcudnn.so.9",
        "libnvinfer.so.10",
        "libnvonnxparser.so.10",
    )


def is_loaded(soname: str) -> bool:
    """Tell whether this process has loaded a shared library of that name (Linux: dlopen with RTLD_NOLOAD)."""
    try:
        ctypes.CDLL(soname, mode=os.RTLD_NOLOAD)
    except OSError:
        return False
    return True


def wheel_folders() -> list[Path]:
    """Return the folders on `sys.path` in which NVIDIA's wheels put shared libraries, in its order."""
    folders: list[Path] = []
    for entry in dict.fromkeys(sys.path):
        base = Path(entry or ".")
        folders += [*sorted((base / "nvidia").glob("*/lib")), base / "tensorrt_libs"]
    return [folder for folder in folders if folder.is_dir()]


def _loader_folders() -> list[Path]:
    return [Path(entry) for entry in os.environ.get("LD_LIBRARY_PATH", "").split(":") if entry]


def _load_from(soname: str, folders: Sequence[Path]) -> None:
    """Load a library from the first of the folders that holds it, unless it is loaded already."""
    for folder in folders:
        if is_loaded(soname):
            return
        if (folder / soname).is_file():
            with suppress(OSError):
                ctypes.CDLL(str(folder / soname))


def load_error(provider_library: Path) -> str:
    """Return why a provider's shared library cannot be loaded, in the loader's words; empty where its libraries are found."""
    try:
        ctypes.CDLL(str(provider_library))
    except OSError as cause:
        return str(cause)
    return ""


def find_missing_library(message: str) -> str | None:
    """Return the shared library that a loader's message calls missing, or None."""
    for line in message.splitlines():
        if (
            "cannot open shared object" in line
            or "Unable to dlopen" in line
            or "could not be loaded" in line
        ):
            # The message begins with the library that wanted it.
            names = [
                match.group(0)
                for match in _LIBRARY_PATTERN.finditer(line)
                if "onnxruntime" not in match.group(0)
            ]
            if names:
                return names[0]
    return None


def suggest_remedy(problem: str) -> str:
    """Return the command that mends a CUDA or TensorRT provider which does not start.

    Args:
        problem: what the provider said, with the name of a library where one lacks.
    """
    match = _LIBRARY_PATTERN.search(problem)
    if match is None and sys.platform == "win32" and "driver" not in problem.lower():
        return _install_all_command()  # Windows does not say which library lacks.
    if match is None or match.group(1) == "libcuda":
        return _DRIVER_REMEDY
    package = _LIBRARY_PACKAGES.get(match.group(1))
    if package is None:
        return f"install what holds {match.group(0)}; `ldd` on onnxruntime's provider library shows all that lacks"
    for name in (package, f"{package}-cu{required_cuda_major()}"):
        version = _installed_version(name)
        if version is not None:
            return f'pip install --force-reinstall --no-deps "{name}=={version}"   (it is installed, but its files are not in place)'
    if package == "tensorrt":
        # The number behind .so is TensorRT's major version.
        return f'pip install "tensorrt-cu{required_cuda_major()}=={match.group(2) or 10}.*"'
    return _install_all_command()


def required_cuda_major() -> int:
    """Return CUDA's major version that the installed onnxruntime-gpu asks for; 13 where its metadata does not say."""
    with suppress(metadata.PackageNotFoundError):
        for requirement in metadata.requires("onnxruntime-gpu") or []:
            if match := re.match(r"nvidia-cudnn-cu(\d+)", requirement):
                return int(match.group(1))
    return 13


def _install_all_command() -> str:
    version = _installed_version("onnxruntime-gpu")
    if version is None:
        return 'pip install "edgetl[gpu]"'
    return f'pip install "onnxruntime-gpu[cuda,cudnn]=={version}"'


def _installed_version(package: str) -> str | None:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None
