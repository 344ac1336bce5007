"""One run of a session that ends after a time, whatever the model does."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from edgetl.core.errors import BundleError

INFERENCE_TIMEOUT_S = 120.0
"""For one batch: hundreds of times what a lightweight model takes on a small board."""


def run_with_timeout(
    session: onnxruntime.InferenceSession,
    outputs: Sequence[str],
    feed: Mapping[str, NDArray[Any]],
    seconds: float = INFERENCE_TIMEOUT_S,
) -> list[NDArray[Any]]:
    """Run a session once; a valid model may loop without end.

    onnxruntime looks between two nodes at whether a run was told to end (`RunOptions.terminate`).

    Raises:
        BundleError: there was no answer in time.
        Exception: what onnxruntime raises.
    """
    options = onnxruntime.RunOptions()
    ended = threading.Event()

    def end() -> None:
        ended.set()
        options.terminate = True

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        values: list[NDArray[Any]] = session.run(list(outputs), dict(feed), options)
    except Exception as cause:
        if ended.is_set():
            raise BundleError(
                f"The model gave no answer within {seconds:g} seconds and was ended. If the device is not busy, export the bundle again."
            ) from cause
        raise
    finally:
        timer.cancel()
    return values
