"""The versions of what a run's figures depend on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import edgetl

PACKAGES = ("torch", "torchvision", "albumentations", "numpy", "pillow", "safetensors")


def versions(*more: str) -> dict[str, str | None]:
    """Of edgetl, Python, the training packages and `more`; None for what is not installed."""
    return {
        "edgetl": edgetl.__version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in (*PACKAGES, *more)},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
