"""Things that are chosen by name and loaded only when used: one row here, one file there.

Lower layers reach upper ones (the benchmark its PyTorch backend) through these rows, never by import.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from edgetl.core.errors import ConfigError, MissingPackageError

BACKENDS = {
    "onnxruntime": "edgetl.device.bench.ort_backend:OnnxRuntimeBackend",
    "pytorch": "edgetl.train.pytorch_backend:PyTorchBackend",
}
"""Benchmark backends: runtime name to class; see edgetl.device.bench.backend for the protocol."""

FEATURE_EXTRACTORS = {
    "onnxruntime": "edgetl.train.features.extractor:make_onnx_extractor",
}
"""Runtimes for frozen blocks beside PyTorch: name to a function (module, example inputs) -> function;
see edgetl.train.features.extractor."""

QUANTIZERS = {
    "fp16": "edgetl.export.quantize.fp16:convert_to_fp16",
    "int8": "edgetl.export.quantize.int8_search:quantize_static_int8",
    "int8-dynamic": "edgetl.export.quantize.weight_only:quantize_dynamic_int8",
    "int8-weights": "edgetl.export.quantize.weight_only:quantize_weights_int8",
}
"""Variants beside fp32: name to a function (task) -> smaller network; see edgetl.export.quantize.task."""

EXTRAS = {
    "torch": "train", "torchvision": "train", "albumentations": "train", "safetensors": "train", "matplotlib": "train",
    "onnx": "train", "onnxscript": "train", "onnxruntime": "cpu", "jinja2": "report",
    "imagehash": "train", "tensorboard": "tensorboard", "mlflow": "mlflow",
    "mlperf_loadgen": "loadgen",
}  # fmt: skip
"""Which extra of edgetl brings a package."""


def load_from_registry(table: dict[str, str], name: str, what: str) -> Any:
    """The object behind a row.

    Raises:
        ConfigError: `name` is no row of `table`.
        MissingPackageError: the row's module needs a package that is not installed.
    """
    if name not in table:
        raise ConfigError(f"Unknown {what} {name!r}. Known: {', '.join(sorted(table))}.")
    module, _, attribute = table[name].partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as cause:
        raise convert_import_error(cause) from cause


def convert_import_error(cause: ModuleNotFoundError) -> Exception:
    """The same fact as a message that names the command; an unknown module is a bug and comes back as it is."""
    package = (cause.name or "").partition(".")[0]
    if package not in EXTRAS:
        return cause
    return MissingPackageError(
        f'{package} is not installed. `pip install "edgetl[{EXTRAS[package]}]"` adds it; `edgetl doctor` shows what else is missing.'
    )
