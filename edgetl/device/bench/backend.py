"""Interface of a benchmark backend.

A new backend is a class with these methods and a row in `edgetl.core.registry.BACKENDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from edgetl.core.preprocessing import Preprocessing
from edgetl.core.runtimes import ONNXRUNTIME

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgetl.core.artifacts.session import OperatorProfile, SessionRecord

Stage = tuple[str, Callable[[Any], Any]]
"""Name and function of a timed stage; it is called with the previous stage's result."""


@dataclass(frozen=True)
class ModelSource:
    """Model to open, and the configuration of the backend."""

    model: Path
    """A variant's file, an ONNX file or a run directory."""
    threads: int
    """Intra-op threads; inter-op is 1."""
    provider: str = "cpu"
    """Short name of an execution provider; other runtimes use the device it stands for."""
    input: Literal["image", "tensor"] = "image"
    """Input kind of the ONNX variant; all runtimes of a comparison get the same input."""
    preprocessing: Preprocessing | None = None
    """Preprocessing of the model; None for ONNX files from other tools."""
    batch: int = 1
    """Images per call in scope `model`."""
    input_file: Path | None = None
    """A .npy or .npz input file for ONNX files from other tools; None means random values."""
    precision: str | None = None
    """Precision to compute in (fp32, bf16, fp16, int8), None if unknown. On a CPU, ONNX Runtime
    takes it from the file."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Requested runtime settings, and those that `autotune` chose on this device."""
    size: tuple[int, int] | None = None
    """Fixed image size (height, width) of the variant.

    None if it takes images of any size, or preprocessed tensors.
    """
    runtime: str = ONNXRUNTIME
    """Name of the runtime, see `edgetl.core.runtimes`; PyTorch has a backend of its own."""
    extra_files: tuple[Path, ...] = ()
    """Further files of the variant."""


class Backend(Protocol):
    """An open model, ready for inference."""

    provider: str
    """Short name of the provider that actually runs the model."""

    def __init__(self, source: ModelSource) -> None:
        """Open the model.

        Raises:
            EdgetlError: the model cannot be opened on the requested provider.
        """

    def infer(self, batch: Any) -> NDArray[np.float32]:
        """Return logits [batch, classes].

        Args:
            batch: uint8 [batch, R, R, 3] (R: the length after resize), float32 [batch, 3, S, S],
                or a batch from `make_inputs`.
        """

    def infer_confidence(
        self, batch: Any
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None] | None:
        """Return probabilities [batch, classes], and unknown scores [batch] if the model has any.

        None if the runtime computes only logits.
        """

    def stages(self) -> list[Stage]:
        """Return the stages of `infer`.

        They are `inference` alone, or `to device`, `inference` and `to host` on a device with its
        own memory.
        """

    def preprocess_image(self, image: NDArray[np.uint8]) -> NDArray[Any]:
        """Convert a decoded image [height, width, 3] to the input of `infer`."""

    def prepare_batch(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Return images or tensors of the scope `model` in the runtime's order in memory."""

    def make_inputs(self, count: int) -> list[Any]:
        """Return batches from the input file or random ones, for models without golden images."""

    def autotune(self, batch: Any) -> dict[str, str]:
        """Return the settings that are fastest on this device, for later processes."""

    def describe(self, batch: Any) -> SessionRecord:
        """Return the effective configuration and node placement; may run `batch`."""

    def profile(self, batch: Any, runs: int) -> OperatorProfile:
        """Profile the model by operator and node."""
