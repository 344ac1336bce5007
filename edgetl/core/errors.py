"""Error classes. The library raises them; only `edgetl.cli` prints messages and exits.

EdgetlError                 an error that the user can fix: exit code 1
├── ConfigError             options or a configuration are invalid or contradict each other
├── DataError               images are missing, empty, inconsistent or undecodable
│   └── DecodeError         a file is not a readable image
├── WeightsError            weights are missing, unsafe or do not match the architecture
├── ArchitectureError       an architecture is unknown or cannot be adapted
├── RunError                a run directory is missing, incomplete, in use or already exists
├── BundleError             a bundle is missing, incomplete, altered or already exists
├── ExportError             the model cannot be exported to ONNX
│   └── ParityError         the ONNX file does not reproduce PyTorch's logits
├── ProviderError           an execution provider is missing or rejected the model
├── BenchError              a measurement failed or cannot be compared
└── MissingPackageError     a package is missing; the message names the command to install it
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_CONFIG_PACKAGE = "edgetl.core.config."


class EdgetlError(Exception):
    """Base class of errors that the user can fix.

    The message states the problem and the next step. It names fields of a configuration, such as
    `budget_s`; the command line names its options instead, see `fill_in_fields`.
    """

    def __init__(self, message: str = "", config: type[DataclassInstance] | None = None) -> None:
        """Create the error.

        Args:
            message: Message; with `config`, its fields are in braces: "{budget_s} must be > 0."
            config: Configuration that the message is about.
        """
        self.template = message
        self.config = config
        super().__init__(fill_in_fields(message, _python_names(config) if config else {}))


def _python_names(config: type[DataclassInstance]) -> dict[str, str]:
    """Return how each field is written in Python; of a flag, what turns it on."""
    names = {}
    for name, field in config.__dataclass_fields__.items():
        names[name] = f"{name}=True" if field.default is False else name
        # The options of a nested configuration belong to the command as well.
        nested: Any = field.default_factory
        if hasattr(nested, "__dataclass_fields__"):
            names.update(_python_names(nested))
    return names


def fill_in_fields(template: str, names: Mapping[str, str]) -> str:
    """Replace each field in braces by its name. Other braces, such as a value's, are kept."""
    return re.sub(r"\{(\w+)\}", lambda match: names.get(match[1], match[0]), template)


class ConfigError(EdgetlError):
    """Options or a configuration are invalid or contradict each other."""


class DataError(EdgetlError):
    """The data set is missing, empty, or its classes are inconsistent."""


class DecodeError(DataError):
    """A file is not a readable image."""


class WeightsError(EdgetlError):
    """Weights are missing, unsafe to load, or do not match the architecture."""


class ArchitectureError(EdgetlError):
    """An architecture is unknown or cannot be adapted."""


class RunError(EdgetlError):
    """A run directory is missing, incomplete, in use, or already exists."""


class BundleError(EdgetlError):
    """A bundle is missing, incomplete, altered, or already exists."""


class ExportError(EdgetlError):
    """The model cannot be exported to ONNX."""


class ParityError(ExportError):
    """The ONNX file does not reproduce PyTorch's logits."""


class ProviderError(EdgetlError):
    """An execution provider is missing or rejected the model."""


class BenchError(EdgetlError):
    """A measurement failed or cannot be compared."""


class MissingPackageError(EdgetlError):
    """A required package is not installed."""


def error_to_json(error: EdgetlError) -> dict[str, str]:
    """Serialize an error to send it from a worker process to its parent."""
    content = {"class": type(error).__name__, "message": error.template}
    if error.config is not None:
        content["config"] = f"{error.config.__module__}:{error.config.__name__}"
    return content


def error_from_json(content: Mapping[str, str]) -> EdgetlError:
    """Deserialize an error; one of an unknown class becomes a BenchError."""
    error_class = globals().get(content["class"])
    if not (isinstance(error_class, type) and issubclass(error_class, EdgetlError)):
        error_class = BenchError
    module, _, name = content.get("config", "").partition(":")
    config = None
    if module.startswith(_CONFIG_PACKAGE):
        config = getattr(import_module(module), name)
    return error_class(content["message"], config)
