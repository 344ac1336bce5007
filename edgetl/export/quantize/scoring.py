"""What a candidate network is worth: its answers on held-back images, its time, its size."""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from edgetl.device.runtime.session import create_session
from edgetl.export.graph.preprocessing import PIXELS
from edgetl.export.graph.torch_export import LOGITS
from edgetl.export.quantize.images import CroppedImages
from edgetl.train.common.autotune import cached_measurement

Logits = NDArray[np.float32]
_WARMUP_RUNS, _RUNS, _ROUNDS = 5, 20, 3


@dataclass(frozen=True)
class CandidateScore:
    """Figures of one candidate; the fields stand as they are in bundle.json."""

    top1: float | None
    """On the held-back images; None without labels."""
    drop: float
    """Points of top-1 below the float network; without labels the share of images, in %, that get another label than from it."""
    sqnr_db: float
    """Signal to quantization noise of the logits."""
    ms: float
    """Of one image on this machine, network only; a short timing to choose by, not a benchmark."""
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """As it stands in bundle.json."""
        return asdict(self)


class CandidateScorer:
    """Scores candidates against the float network."""

    def __init__(self, network: onnx.ModelProto, images: CroppedImages) -> None:
        self._images = images
        self._reference = compute_logits(network, images)

    def score(self, network: onnx.ModelProto) -> CandidateScore:
        """Run it over the held-back images, then time it."""
        content = network.SerializeToString(deterministic=True)
        session = create_session(content)
        logits = _run_session(session, self._images)
        label, expected, truth = logits.argmax(1), self._reference.argmax(1), self._images.labels
        if truth is None:
            top1, drop = None, 100.0 * float((label != expected).mean())
        else:
            top1 = float((label == truth).mean())
            drop = 100.0 * (float((expected == truth).mean()) - top1)
        # Remembered, because the search chooses by it: exporting twice has to give the same file.
        facts = {
            "candidate": hashlib.sha256(content).hexdigest(),
            "onnxruntime": onnxruntime.__version__,
        }
        ms = cached_measurement(facts, lambda: {"ms": _measure_latency_ms(session, self._images)})[
            "ms"
        ]
        return CandidateScore(top1, drop, sqnr_db(self._reference, logits), ms, len(content))


def compute_logits(network: onnx.ModelProto, images: CroppedImages) -> Logits:
    """[images, classes]."""
    return _run_session(create_session(network.SerializeToString()), images)


def _run_session(session: onnxruntime.InferenceSession, images: CroppedImages) -> Logits:
    return np.concatenate([session.run([LOGITS], {PIXELS: batch})[0] for batch in images.batches()])


def _measure_latency_ms(session: onnxruntime.InferenceSession, images: CroppedImages) -> float:
    """Of one image: the least of the medians of a few rounds."""
    inputs = list(images.take(4).batches(1))
    medians = []
    for _ in range(_ROUNDS):
        taken = []
        for run in range(_WARMUP_RUNS + _RUNS):
            started = time.perf_counter()
            session.run([LOGITS], {PIXELS: inputs[run % len(inputs)]})
            taken.append(time.perf_counter() - started)
        medians.append(median(taken[_WARMUP_RUNS:]))
    return min(medians) * 1e3


def sqnr_db(reference: NDArray[np.floating], approximation: NDArray[np.floating]) -> float:
    """10 log10 of signal power over noise power; 200 where there is no noise to speak of."""
    signal = float(np.square(reference, dtype=np.float64).sum())
    noise = float(np.square(np.asarray(reference, np.float64) - approximation).sum())
    if noise <= 1e-30:
        return 200.0
    return min(200.0, 10 * float(np.log10(max(signal, 1e-30) / max(noise, 1e-30))))
