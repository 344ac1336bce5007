"""The error tree. Library code raises these; only `edgetl.cli` turns them into messages and exit statuses.

EdgetlError                 something the user can mend: exit status 1
├── ConfigError             options or a configuration that contradict themselves or each other
├── DataError               the images: missing, empty, mixed-up or undecodable
│   └── DecodeError         one file that is not a readable image
├── WeightsError            weights that are missing, unsafe or do not fit the architecture
├── ArchitectureError       a model that is unknown or cannot be adapted
├── RunError                a run directory that is missing, incomplete, in use or already there
├── BundleError             a bundle that is missing, incomplete, altered or already there
├── ExportError             the model could not be written as ONNX
│   └── ParityError         it was written, but does not answer as PyTorch does
├── ProviderError           an execution provider that is not there or did not take the model
├── BenchError              a measurement that could not be made or compared
└── MissingPackageError     a package is missing; the message names the command that adds it
"""

from __future__ import annotations

from collections.abc import Mapping


class EdgetlError(Exception):
    """Base of every error a user can mend; the message says what is wrong and what to do next."""


class ConfigError(EdgetlError):
    """Options or a configuration that contradict themselves or each other."""


class DataError(EdgetlError):
    """The data set cannot be used: missing, empty, or its classes do not fit together."""


class DecodeError(DataError):
    """One file is not a readable image."""


class WeightsError(EdgetlError):
    """Weights are missing, unsafe to load, or do not fit the architecture."""


class ArchitectureError(EdgetlError):
    """An architecture is unknown or cannot be adapted."""


class RunError(EdgetlError):
    """A run directory is missing, incomplete or already there."""


class BundleError(EdgetlError):
    """A bundle is missing, incomplete, altered or already there."""


class ExportError(EdgetlError):
    """The model could not be written as ONNX."""


class ParityError(ExportError):
    """The ONNX file does not answer as PyTorch does."""


class ProviderError(EdgetlError):
    """An execution provider is not there or did not take the model."""


class BenchError(EdgetlError):
    """A measurement could not be made or compared."""


class MissingPackageError(EdgetlError):
    """A package that the command needs is not installed."""


def error_to_json(error: EdgetlError) -> dict[str, str]:
    """An error on its way from a worker to the process that waits for it."""
    return {"class": type(error).__name__, "message": str(error)}


def error_from_json(content: Mapping[str, str]) -> EdgetlError:
    """The same error again; one that this edgetl does not know becomes a BenchError."""
    kind = globals().get(content["class"])
    if not (isinstance(kind, type) and issubclass(kind, EdgetlError)):
        kind = BenchError
    return kind(content["message"])
