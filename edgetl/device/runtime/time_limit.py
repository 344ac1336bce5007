"""Run a session with a time limit."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from edgetl.core.errors import BundleError

if TYPE_CHECKING:
    import onnxruntime

INFERENCE_TIMEOUT_S = 120.0
"""Time limit of one batch, hundreds of times the latency of a light model on a small board."""


def run_with_timeout(
    session: onnxruntime.InferenceSession,
    outputs: Sequence[str],
    feed: Mapping[str, NDArray[Any]],
    seconds: float = INFERENCE_TIMEOUT_S,
) -> list[NDArray[Any]]:
    """Run a session once with a time limit, because a valid model may loop forever.

    onnxruntime checks `RunOptions.terminate` between two nodes.

    Raises:
        BundleError: the run timed out.
        Exception: onnxruntime's exceptions.
    """
    import onnxruntime

    options = onnxruntime.RunOptions()
    timed_out = threading.Event()

    def terminate() -> None:
        timed_out.set()
        options.terminate = True

    timer = threading.Timer(seconds, terminate)
    timer.daemon = True
    timer.start()
    try:
        values: list[NDArray[Any]] = session.run(list(outputs), dict(feed), options)
    except Exception as cause:
        if timed_out.is_set():
            raise BundleError(
                f"The inference timed out after {seconds:g} seconds. "
                "If the device is not busy, export the bundle again."
            ) from cause
        raise
    finally:
        timer.cancel()
    return values
