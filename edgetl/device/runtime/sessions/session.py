"""Interface of the sessions of runtimes other than ONNX Runtime.

A new runtime is a class with these methods and a row in `edgetl.core.runtimes.RUNTIMES`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgetl.core.artifacts.session import ProfiledNode
from edgetl.core.errors import BundleError
from edgetl.core.registry import load_from_registry
from edgetl.core.runtimes import RUNTIMES


@dataclass(frozen=True)
class SessionSource:
    """Files of a variant, and options."""

    files: tuple[Path, ...]
    """Files in the order of the runtime's suffixes."""
    threads: int
    crop: int
    """Side of the network's input in pixels."""
    precision: str = "fp32"
    """Precision to compute in: fp32, bf16, fp16 or int8. `int8` files fix it themselves."""


@dataclass(frozen=True)
class SessionFacts:
    """Effective configuration of a session, as the runtime reports it."""

    version: str
    threads: int
    precision_shares: Mapping[str, float]
    """Share of the convolutions and matrix products by the precision that they ran in; empty if
    the runtime does not report it."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Options that affect latency or results, by the runtime's names."""

    @property
    def precision(self) -> str | None:
        """Precision of most convolutions and matrix products; None if not reported."""
        if not self.precision_shares:
            return None
        return max(self.precision_shares, key=lambda name: self.precision_shares[name])


class ModelSession(Protocol):
    """A model that is ready for inference."""

    output_names: tuple[str, ...]
    """Outputs that the file computes: `logits` [batch, classes], and `probabilities` [batch,
    classes] and `unknown_score` [batch] where the format can hold them."""

    def run(self, names: Sequence[str], batch: NDArray[Any]) -> list[NDArray[Any]]:
        """Return outputs for a batch.

        Args:
            names: outputs to return, from `output_names`.
            batch: input of the model.

        Returns:
            Arrays that later calls do not overwrite.
        """


class RuntimeSession(ModelSession, Protocol):
    """A model of a runtime other than ONNX Runtime.

    Its input is float32 [batch, 3, crop, crop], preprocessed by edgetl. Any order in memory is
    correct; that of `Runtime.channels_last` is the fastest. Threads may share a session; their calls
    may wait for each other.
    """

    def __init__(self, source: SessionSource) -> None:
        """Open the files.

        Raises:
            BundleError: the runtime cannot load them.
        """

    def describe(self) -> SessionFacts:
        """Return the effective configuration, after at least one inference."""

    def profile(self, pixels: NDArray[np.float32], runs: int) -> list[ProfiledNode]:
        """Return the time of each node of the runtime's graph; empty if it does not report them."""


def open_session(runtime: str, source: SessionSource) -> RuntimeSession:
    """Open a model with a runtime other than ONNX Runtime.

    Raises:
        MissingPackageError: the runtime is not installed.
        BundleError: it cannot load the files.
    """
    sessions = {name: entry.session for name, entry in RUNTIMES.items() if entry.session}
    session_class = load_from_registry(sessions, runtime, "runtime")
    session: RuntimeSession = session_class(source)
    return session


def load_error(runtime: str, version: str, files: Sequence[Path], cause: Exception) -> BundleError:
    """Return the error for files that a runtime cannot load."""
    names = ", ".join(path.name for path in files)
    message = " ".join(str(cause).split())[:300]
    return BundleError(
        f"{RUNTIMES[runtime].title} {version} cannot load {names}: {message} "
        "Copy or export the bundle again."
    )
