"""ONNX Runtime's own file format, which its minimal builds read instead of ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime

from edgetl.core.errors import ExportError
from edgetl.core.files import sha256_file


def write_ort(file: Path) -> dict[str, Any]:
    """Write NAME.ort beside NAME.onnx and load it once; returns its entry for bundle.json.

    Optimised as far as every machine can run it (level `extended`): layouts of one CPU's caches stay out.

    Raises:
        ExportError: onnxruntime cannot write it or read it back.
    """
    target = file.with_suffix(".ort")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    options.add_session_config_entry("session.save_model_format", "ORT")
    try:
        onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    except Exception as cause:  # onnxruntime's exceptions share no base class
        raise ExportError(
            f"onnxruntime {onnxruntime.__version__} cannot write {file.name} in ORT format: {cause} Leave out --ort-format."
        ) from cause
    return {"file": target.name, "sha256": sha256_file(target), "bytes": target.stat().st_size}
