"""Benchmark backend of runtimes other than ONNX Runtime and PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.core.artifacts.session import OperatorProfile, SessionRecord
from edgetl.core.errors import BenchError
from edgetl.core.runtimes import RUNTIMES
from edgetl.device.bench.backend import ModelSource, Stage
from edgetl.device.runtime.preprocessing import preprocess, to_channels_last, to_network_input
from edgetl.device.runtime.profile import summarize_operators
from edgetl.device.runtime.sessions.session import SessionSource, open_session


class SessionBackend:
    """A session of a runtime with edgetl's preprocessing in front of it."""

    def __init__(self, source: ModelSource) -> None:
        if source.preprocessing is None:
            raise BenchError(
                f"{source.model} has no preprocessing, which {RUNTIMES[source.runtime].title} "
                "needs. Give a bundle."
            )
        if source.provider != "cpu":
            raise BenchError(
                f"{RUNTIMES[source.runtime].title} is measured on the CPU only, "
                f"got provider {source.provider}."
            )
        self.provider = source.provider
        self._source = source
        self._preprocessing = source.preprocessing
        self._session = open_session(
            source.runtime,
            SessionSource(
                (source.model, *source.extra_files),
                source.threads,
                source.preprocessing.crop,
                source.precision or "fp32",
            ),
        )
        self._run = self._session.run
        self._channels_last = RUNTIMES[source.runtime].channels_last

    def infer(self, batch: Any) -> NDArray[np.float32]:
        """Return the logits for images, which are preprocessed first, or for tensors."""
        logits: NDArray[np.float32] = self._run(("logits",), self._to_network_input(batch))[0]
        return logits

    def infer_confidence(
        self, batch: Any
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None] | None:
        """Return probabilities, and unknown scores if the file computes any.

        None if the file computes only logits.
        """
        if "probabilities" not in self._session.output_names:
            return None
        names = [name for name in ("probabilities", "unknown_score") if self._has_output(name)]
        probabilities, *scores = self._run(names, self._to_network_input(batch))
        return probabilities, scores[0].reshape(-1) if scores else None

    def stages(self) -> list[Stage]:
        """Return one stage."""
        return [("inference", self.infer)]

    def preprocess_image(self, image: NDArray[np.uint8]) -> NDArray[Any]:
        """Return the preprocessed tensor [1, 3, S, S]."""
        return preprocess(image, self._preprocessing, self._channels_last)

    def prepare_batch(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Return tensors in the runtime's order, and images unchanged."""
        is_tensor = batch.dtype != np.uint8
        return to_channels_last(batch) if is_tensor and self._channels_last else batch

    def make_inputs(self, count: int) -> list[Any]:
        """Return random batches of tensors."""
        shape = (self._source.batch, 3, self._preprocessing.crop, self._preprocessing.crop)
        return [
            self.prepare_batch(np.random.default_rng(seed).random(shape, np.float32))
            for seed in range(count)
        ]

    def autotune(self, batch: Any) -> dict[str, str]:
        """Return no settings: the options are the runtime's defaults."""
        return {}

    def describe(self, batch: Any) -> SessionRecord:
        """Return the runtime's version, options and the precision that ran."""
        facts = self._session.describe()
        return SessionRecord(
            intra_op_threads=facts.threads,
            runtime_version=facts.version,
            precision=facts.precision,
            precision_shares=facts.precision_shares or None,
            runtime_options=facts.options or None,
        )

    def profile(self, batch: Any, runs: int) -> OperatorProfile:
        """Return the time of every node that the runtime reports.

        Raises:
            BenchError: it reports none.
        """
        nodes = self._session.profile(self._to_network_input(batch), runs)
        if not nodes:
            raise BenchError(
                f"{RUNTIMES[self._source.runtime].title} reports no times of operators. "
                "Leave out --profile, or measure onnxruntime alone."
            )
        return OperatorProfile(
            runs=runs, operators=summarize_operators(nodes), nodes=tuple(nodes), clock="host"
        )

    def _to_network_input(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        return to_network_input(batch, self._preprocessing, self._channels_last)

    def _has_output(self, name: str) -> bool:
        return name in self._session.output_names
