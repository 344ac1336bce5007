"""Scores of quantized candidates: accuracy on held-out images, latency and size."""

from __future__ import annotations

import hashlib
import time
from statistics import median

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from edgetl.core.artifacts.bundle import QuantizationScore
from edgetl.device.runtime.session import create_session
from edgetl.export.graph.preprocessing import PIXELS
from edgetl.export.graph.torch_export import LOGITS
from edgetl.export.quantize.images import CroppedImages
from edgetl.train.common.autotune import cached_measurement

Logits = NDArray[np.float32]
_WARMUP_RUNS, _RUNS, _ROUNDS = 5, 20, 3


class CandidateScorer:
    """Scorer of candidates against the float network.

    Args:
        network: the float network.
        images: held-out images.
        int8_kernels: compute candidates with onnxruntime's int8 kernels, else in float32 with
            rounded values.
    """

    def __init__(
        self, network: onnx.ModelProto, images: CroppedImages, int8_kernels: bool = True
    ) -> None:
        self._images = images
        self._int8_kernels = int8_kernels
        self._reference = compute_logits(network, images)

    def score(self, network: onnx.ModelProto) -> QuantizationScore:
        """Run a network on the held-out images and measure its latency."""
        content = network.SerializeToString(deterministic=True)
        session = create_session(content, int8_kernels=self._int8_kernels)
        logits = _run_session(session, self._images)
        top1, drop = measure_drop(logits, self._reference, self._images)
        # The latency is cached, so that a second export makes the same choice and writes equal
        # files.
        key = {
            "candidate": hashlib.sha256(content).hexdigest(),
            "onnxruntime": onnxruntime.__version__,
            "int8_kernels": str(self._int8_kernels),
        }
        measurement = cached_measurement(
            dict[str, float], key, lambda: {"ms": _measure_latency_ms(session, self._images)}
        )
        return QuantizationScore(
            top1, drop, sqnr_db(self._reference, logits), measurement["ms"], len(content)
        )


def measure_drop(
    logits: Logits, reference: Logits, images: CroppedImages
) -> tuple[float | None, float]:
    """Return top-1 accuracy, None without labels, and the points lost against the float network.

    Without labels the loss is the share of images, in percent, whose label differs.

    Args:
        logits: of the candidate, [images, classes].
        reference: of the float network, [images, classes].
        images: the images of both.
    """
    predicted, expected, truth = logits.argmax(1), reference.argmax(1), images.labels
    if truth is None:
        return None, 100.0 * float((predicted != expected).mean())
    top1 = float((predicted == truth).mean())
    return top1, 100.0 * (float((expected == truth).mean()) - top1)


def compute_logits(network: onnx.ModelProto, images: CroppedImages) -> Logits:
    """Run a network on images; return logits [images, classes]."""
    return _run_session(create_session(network.SerializeToString()), images)


def _run_session(session: onnxruntime.InferenceSession, images: CroppedImages) -> Logits:
    return np.concatenate([session.run([LOGITS], {PIXELS: batch})[0] for batch in images.batches()])


def _measure_latency_ms(session: onnxruntime.InferenceSession, images: CroppedImages) -> float:
    """Return the latency of one image: the smallest median of a few rounds."""
    inputs = list(images.take(4).batches(1))
    medians_s = []
    for _ in range(_ROUNDS):
        durations_s = []
        for run in range(_WARMUP_RUNS + _RUNS):
            start = time.perf_counter()
            session.run([LOGITS], {PIXELS: inputs[run % len(inputs)]})
            durations_s.append(time.perf_counter() - start)
        medians_s.append(median(durations_s[_WARMUP_RUNS:]))
    return min(medians_s) * 1e3


def sqnr_db(reference: NDArray[np.floating], approximation: NDArray[np.floating]) -> float:
    """Signal-to-quantization-noise ratio: 10 log10(signal power / noise power), at most 200."""
    signal = float(np.square(reference, dtype=np.float64).sum())
    noise = float(np.square(np.asarray(reference, np.float64) - approximation).sum())
    if noise <= 1e-30:
        return 200.0
    return min(200.0, 10 * float(np.log10(max(signal, 1e-30) / max(noise, 1e-30))))
