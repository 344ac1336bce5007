"""Session of ONNX Runtime with a time limit, for classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from edgetl.core.errors import BundleError
from edgetl.device.runtime.session import raise_provider_failure
from edgetl.device.runtime.time_limit import run_with_timeout


class OnnxRuntimeSession:
    """An `onnxruntime.InferenceSession` that runs one input with a time limit."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session
        self.output_names = tuple(node.name for node in session.get_outputs())

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """Fixed size (height, width) of an image input; None if a side is dynamic."""
        sides = [side for side in self.session.get_inputs()[0].shape[1:3] if isinstance(side, int)]
        return (sides[0], sides[1]) if len(sides) == 2 else None

    def run(self, names: Sequence[str], batch: NDArray[Any]) -> list[NDArray[Any]]:
        """Return the outputs `names` for a batch.

        Raises:
            ProviderError: a provider other than the CPU's failed. There is no fallback.
            BundleError: the model cannot be run.
        """
        feed = {self.session.get_inputs()[0].name: batch}
        try:
            return run_with_timeout(self.session, names, feed)
        except BundleError:
            raise
        except Exception as cause:  # onnxruntime's exceptions share no base class
            raise_provider_failure(self.session, cause)
            message = " ".join(str(cause).split())
            raise BundleError(
                f"The model cannot be run: {message} Export the bundle again."
            ) from cause
