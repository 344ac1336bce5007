"""Load CUDA's shared libraries before a session, and suggest the package of a missing one.

onnxruntime's CUDA provider has no search path of its own (no RUNPATH), and pip installs NVIDIA's
libraries in folders that the system's loader does not search. The loader does not search for
libraries that are already loaded, so they are loaded by path first.
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

# Packages for CUDA 13 and later have no suffix. Packages for CUDA 12, and all of cuDNN and
# TensorRT, end in -cu and CUDA's version.
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
    """Load the libraries that onnxruntime's CUDA and TensorRT providers link to, once per process.

    onnxruntime's own `preload_dlls` searches onnxruntime's site-packages and the loader's paths.
    The remaining libraries are loaded from NVIDIA's wheels anywhere on `sys.path` (`pip install
    --target`, a system's packages beside a virtual environment). Libraries that are already loaded,
    for example by torch, or that are on LD_LIBRARY_PATH are not loaded from a wheel: a second copy
    of a library has its own state. Nothing is printed or raised: starting a session reports missing
    libraries.
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
    # onnxruntime before 1.21 does not have it.
    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is not None:
        # It prints the libraries that it cannot find.
        with redirect_stdout(io.StringIO()), suppress(Exception):
            preload()


def _sonames(cuda_major: int) -> tuple[str, ...]:
    """Return the names of the libraries, dependencies first, including TensorRT's."""
    return (
        f"libcublasLt.so.{cuda_major}",
        f"libcublas.so.{cuda_major}",
        f"libnvrtc.so.{cuda_major}",
        "libcurand.so.10",
        f"libcufft.so.{cuda_major - 1}",
        f"libcudart.so.{cuda_major}",
        "libcudnn.so.9",
        "libnvinfer.so.10",
        "libnvonnxparser.so.10",
    )


def is_loaded(soname: str) -> bool:
    """Return whether this process has loaded a shared library (Linux: dlopen with RTLD_NOLOAD)."""
    try:
        ctypes.CDLL(soname, mode=os.RTLD_NOLOAD)
    except OSError:
        return False
    return True


def wheel_folders() -> list[Path]:
    """Return the folders of NVIDIA's wheels with shared libraries, in the order of `sys.path`."""
    folders: list[Path] = []
    for entry in dict.fromkeys(sys.path):
        base = Path(entry or ".")
        folders += [*sorted((base / "nvidia").glob("*/lib")), base / "tensorrt_libs"]
    return [folder for folder in folders if folder.is_dir()]


def _loader_folders() -> list[Path]:
    return [Path(entry) for entry in os.environ.get("LD_LIBRARY_PATH", "").split(":") if entry]


def _load_from(soname: str, folders: Sequence[Path]) -> None:
    """Load a library from the first folder that contains it, unless it is already loaded."""
    for folder in folders:
        if is_loaded(soname):
            return
        if (folder / soname).is_file():
            with suppress(OSError):
                ctypes.CDLL(str(folder / soname))


def load_error(provider_library: Path) -> str:
    """Return the loader's error for a provider's shared library; empty if it can be loaded."""
    try:
        ctypes.CDLL(str(provider_library))
    except OSError as cause:
        return str(cause)
    return ""


def find_missing_library(message: str) -> str | None:
    """Return the missing shared library from a loader's error message, or None."""
    for line in message.splitlines():
        if (
            "cannot open shared object" in line
            or "Unable to dlopen" in line
            or "could not be loaded" in line
        ):
            # The message may begin with the onnxruntime library that depends on it.
            names = [
                match.group(0)
                for match in _LIBRARY_PATTERN.finditer(line)
                if "onnxruntime" not in match.group(0)
            ]
            if names:
                return names[0]
    return None


def suggest_remedy(problem: str) -> str:
    """Return the command that fixes a CUDA or TensorRT provider that does not start.

    Args:
        problem: the provider's error message, with the name of a missing library if any.
    """
    match = _LIBRARY_PATTERN.search(problem)
    if match is None and sys.platform == "win32" and "driver" not in problem.lower():
        # Windows does not report which library is missing.
        return _install_all_command()
    if match is None or match.group(1) == "libcuda":
        return _DRIVER_REMEDY
    package = _LIBRARY_PACKAGES.get(match.group(1))
    if package is None:
        return (
            f"install the package with {match.group(0)}; "
            "`ldd` on onnxruntime's provider library shows all missing libraries"
        )
    for name in (package, f"{package}-cu{required_cuda_major()}"):
        version = _installed_version(name)
        if version is not None:
            return (
                f'pip install --force-reinstall --no-deps "{name}=={version}"'
                "   (it is installed, but its files are missing)"
            )
    if package == "tensorrt":
        # The number after .so is TensorRT's major version.
        return f'pip install "tensorrt-cu{required_cuda_major()}=={match.group(2) or 10}.*"'
    return _install_all_command()


def required_cuda_major() -> int:
    """Return CUDA's major version required by the installed onnxruntime-gpu; 13 if unknown."""
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
