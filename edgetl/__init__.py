"""Fine-tune an image classifier, export it to a verified ONNX bundle, and benchmark it on a device.

The commands are thin wrappers over these functions:

    edgetl.finetune(config)           FinetuneConfig -> RunDirectory       extra `train`
    edgetl.export_run(...)            run -> bundle                        extra `train`
    edgetl.export_architecture(...)   architecture -> bundle               extra `train`
    edgetl.bench(config)              BenchConfig -> BenchResult           onnxruntime
    edgetl.loadgen(config)            LoadgenConfig -> LoadgenResult       extra `loadgen`
    edgetl.compare(...)               CompareConfig -> Experiment          extra `train`
    edgetl.open_bundle(...)           folder -> bundle
    edgetl.open_classifier(...)       bundle -> Classifier                 onnxruntime

`bench` needs PyTorch as well for its PyTorch rows. Errors that the user can fix are subclasses of
EdgetlError, see edgetl.core.errors.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

# onnxruntime 1.29 and newer sends telemetry unless this variable is set when it is imported. It is
# set here because any module may be the first to import onnxruntime.
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
    # Names are imported on first use, so that `import edgetl` needs only the standard library.
    if name not in _PUBLIC:
        raise AttributeError(f"module 'edgetl' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    return getattr(import_module(module), attribute)
