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


class EdgetlError(Exception):
    """Base class of errors that the user can fix.

    The message states the problem and the next step.
    """


class ConfigError(EdgetlError):
    """Options or a configuration are invalid or contradict each other.

    The message is about fields of the configuration; `command_line_message` about options.
    """

    def __init__(self, message: str, flags: Mapping[str, str] | None = None) -> None:
        """Create the error.

        Args:
            message: Message, with the names of fields in braces if there are `flags`.
            flags: Name on the command line of each field.
        """
        flags = flags or {}
        self.command_line_message = _fill_in(message, flags)
        super().__init__(_fill_in(message, {name: name for name in flags}))


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


def _fill_in(message: str, names: Mapping[str, str]) -> str:
    """Replace fields in braces. Other braces, such as those of a value, are left as they are."""
    return re.sub(r"\{(\w+)\}", lambda match: names.get(match[1], match[0]), message)


def error_to_json(error: EdgetlError) -> dict[str, str]:
    """Serialize an error to send it from a worker process to its parent."""
    return {"class": type(error).__name__, "message": str(error)}


def error_from_json(content: Mapping[str, str]) -> EdgetlError:
    """Deserialize an error; one of an unknown class becomes a BenchError."""
    error_class = globals().get(content["class"])
    if not (isinstance(error_class, type) and issubclass(error_class, EdgetlError)):
        error_class = BenchError
    return error_class(content["message"])
