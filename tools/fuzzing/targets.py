"""A row for each kind of files; the module is imported in the process that uses it."""

from __future__ import annotations

from importlib import import_module

from tools.fuzzing.target import Target

TARGETS = {
    "images": "tools.fuzzing.images",
    "runs": "tools.fuzzing.runs",
    "checkpoints": "tools.fuzzing.checkpoints",
    "weights": "tools.fuzzing.weights",
    "presets": "tools.fuzzing.presets",
    "caches": "tools.fuzzing.caches",
    "results": "tools.fuzzing.results",
    "bundles": "tools.fuzzing.bundles",
}


def load_target(name: str) -> Target:
    """Import a target."""
    target: Target = import_module(TARGETS[name]).TARGET
    return target
