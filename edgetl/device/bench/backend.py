"""What the benchmark asks of a runtime. A new one is a class with these methods and a row in `edgetl.core.registry.BACKENDS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from edgetl.core.preprocessing import Preprocessing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Stage = tuple[str, Callable[[Any], Any]]
"""A step of the timed way and its name; it is given what the step before returned."""


@dataclass(frozen=True)
class ModelSource:
    """What a backend opens, and how."""

    model: Path
    """An ONNX file or a run directory."""
    threads: int
    """Intra-op threads; inter-op is 1."""
    provider: str = "cpu"
    """An execution provider's short name; other runtimes take the device that it stands for."""
    input: Literal["image", "tensor"] = "image"
    """What the ONNX variant takes; every runtime of a comparison is given the same."""
    preprocessing: Preprocessing | None = None
    """None for an ONNX file that is not edgetl's."""
    batch: int = 1
    """Images a call in scope `model`."""
    given: Path | None = None
    """A .npy or .npz file to feed instead of random values; for ONNX files that are not edgetl's."""
    precision: str | None = None
    """Of the ONNX file, as a bundle names it (fp32, fp16, int8); None where nothing says so. TensorRT computes in it."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What was asked of the runtime, and what `settle` found on this device."""
    size: tuple[int, int] | None = None
    """(height, width) of the only images that the variant takes; None: of any size, or preprocessed tensors."""


class Backend(Protocol):
    """One opened model. The constructor takes a `Source` and leaves the model ready to answer."""

    provider: str
    """Where it really runs, by a provider's short name."""

    def __init__(self, source: ModelSource) -> None:
        """Open the model.

        Raises:
            EdgetlError: it cannot be opened, or not where it was asked for.
        """

    def infer(self, batch: Any) -> NDArray[np.float32]:
        """Logits [batch, classes] for uint8 [batch, R, R, 3] (R: the length after resize), float32 [batch, 3, S, S], or one of `inputs`."""

    def stages(self) -> list[Stage]:
        """`infer`, step by step: `inference` alone, or between `to device` and `to host` where the device has memory of its own."""

    def preprocess_image(self, image: NDArray[np.uint8]) -> NDArray[Any]:
        """What `infer` takes for one decoded image [height, width, 3]: the way from a photo to its answer."""

    def make_inputs(self, count: int) -> list[Any]:
        """Given or random batches that the model takes; for models without reference images."""

    def autotune(self, batch: Any) -> dict[str, Any]:
        """Settings that are fastest on this device; they become `Source.settings` of every later process."""

    def describe(self, batch: Any) -> dict[str, Any]:
        """The configuration in force and the proof of where it runs, for the result; may run `batch`."""

    def profile(self, batch: Any, runs: int) -> dict[str, Any]:
        """{"runs", "clock", "operators", "nodes"}: where the time of a run goes, and whose: see `PROFILE_CLOCKS`."""
