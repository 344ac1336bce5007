"""Table of the fuzz targets. Their modules are imported only in the worker."""

from __future__ import annotations

from importlib import import_module

from tools.checks.fuzz.target import Target

TARGETS = {
    "images": "tools.checks.fuzz.images",
    "runs": "tools.checks.fuzz.runs",
    "checkpoints": "tools.checks.fuzz.checkpoints",
    "weights": "tools.checks.fuzz.weights",
    "presets": "tools.checks.fuzz.presets",
    "caches": "tools.checks.fuzz.caches",
    "results": "tools.checks.fuzz.results",
    "bundles": "tools.checks.fuzz.bundles",
}


def load_target(name: str) -> Target:
    """Import the module of a target and return the target."""
    target: Target = import_module(TARGETS[name]).TARGET
    return target
