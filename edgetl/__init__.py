"""From a folder of images to a classifier on an edge device, with proof.

The library's surface is small; every command of the same name is a thin wrapper over it:

    edgetl.finetune(config)   FinetuneConfig -> RunDirectory     needs the extra `train`
    edgetl.export(...)        run or architecture -> Bundle      needs the extra `train`
    edgetl.bench(config)      BenchConfig -> result              needs onnxruntime; PyTorch only for its own rows
    edgetl.loadgen(config)    LoadgenConfig -> result            needs the extra `loadgen`
    edgetl.open_classifier()  bundle -> Classifier               needs onnxruntime
    edgetl.compare(...)       strategies on one data set -> Experiment   needs the extra `train`

Errors that a user can mend are EdgetlError's subclasses: see edgetl.core.errors.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

# onnxruntime reads this when it is imported, and sends telemetry otherwise (1.29 and newer). Here, because
# any module may be the first to import it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

_PUBLIC = {
    "finetune": "edgetl.train.finetune:finetune",
    "export_run": "edgetl.export.exporter:export_run",
    "export_architecture": "edgetl.export.exporter:export_architecture",
    "bench": "edgetl.device.bench.runner:bench",
    "loadgen": "edgetl.device.loadgen.loadgen:loadgen",
    "compare": "edgetl.experiment.compare:compare",
    "open_bundle": "edgetl.device.runtime.bundle:open_bundle",
    "open_classifier": "edgetl.device.runtime.classifier:open_classifier",
    "load_image": "edgetl.device.runtime.images:load_image",
    "EdgetlError": "edgetl.core.errors:EdgetlError",
    "FinetuneConfig": "edgetl.core.config.finetune:FinetuneConfig",
    "ExportConfig": "edgetl.core.config.export:ExportConfig",
    "BenchConfig": "edgetl.core.config.bench:BenchConfig",
    "LoadgenConfig": "edgetl.core.config.loadgen:LoadgenConfig",
    "CompareConfig": "edgetl.core.config.compare:CompareConfig",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that `import edgetl` needs nothing but the standard library.
    if name not in _PUBLIC:
        raise AttributeError(f"module 'edgetl' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    return getattr(import_module(module), attribute)
