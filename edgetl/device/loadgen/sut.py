"""LoadGen's system under test: an open model that runs queries synchronously, without a queue."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.device.bench.backend import Backend
from edgetl.device.loadgen.qsl import QuerySampleLibrary


class SystemUnderTest:
    """System under test that returns the class of each sample, int64, and records its own times."""

    def __init__(
        self, backend: Backend, library: QuerySampleLibrary, scope: str, batch: int, loadgen: Any
    ) -> None:
        self._backend = backend
        self._library = library
        self._batch = batch
        self._loadgen_module = loadgen
        self._classify: Callable[[Sequence[int]], NDArray[np.int64]]
        if scope == "image":
            self._classify = self._classify_images
        elif batch == 1:
            self._classify = self._classify_sample
        else:
            self._classify = self._classify_batch
        self._batch_buffer: NDArray[Any] | None = None
        self._parent_pid = os.getppid()
        self.callback_ns: list[int] = []
        """Time of each query from its arrival to its last response."""
        self.inference_ns: list[int] = []
        """Part of each query's time that `edgetl bench` would measure, from sample to result."""
        self._query_inference_ns = 0
        self.issued_samples = 0
        """Number of samples issued by LoadGen."""

    def issue_query(self, query: Sequence[Any]) -> None:
        """Run all samples of a query, batch by batch (LoadGen's IssueQuery)."""
        start_ns = perf_counter_ns()
        end_ns = start_ns
        self._query_inference_ns = 0
        make_response = self._loadgen_module.QuerySampleResponse
        complete = self._loadgen_module.QuerySamplesComplete
        batch = self._batch
        for start in range(0, len(query), batch):
            samples = query[start : start + batch] if len(query) > batch else query
            classes = self._classify([sample.index for sample in samples])
            address = classes.ctypes.data
            responses = [
                make_response(sample.id, address + 8 * index, 8)
                for index, sample in enumerate(samples)
            ]
            end_ns = perf_counter_ns()
            complete(responses)
            # Exit if the parent process has ended, as nothing reads the result.
            if os.getppid() != self._parent_pid:
                os._exit(1)
        self.callback_ns.append(end_ns - start_ns)
        self.inference_ns.append(self._query_inference_ns)
        self.issued_samples += len(query)

    def flush_queries(self) -> None:
        """Do nothing, as no queries are queued (LoadGen's FlushQueries)."""

    def _classify_sample(self, indices: Sequence[int]) -> NDArray[np.int64]:
        return self._time_inference(self._library.loaded_samples[indices[0]])

    def _classify_batch(self, indices: Sequence[int]) -> NDArray[np.int64]:
        samples = [self._library.loaded_samples[index] for index in indices]
        if self._batch_buffer is None:
            self._batch_buffer = np.empty((self._batch, *samples[0].shape[1:]), samples[0].dtype)
        return self._time_inference(np.concatenate(samples, out=self._batch_buffer[: len(samples)]))

    def _time_inference(self, batch: NDArray[Any]) -> NDArray[np.int64]:
        start_ns = perf_counter_ns()
        logits = self._backend.infer(batch)
        self._query_inference_ns += perf_counter_ns() - start_ns
        classes: NDArray[np.int64] = logits.argmax(1)
        return classes

    def _classify_images(self, indices: Sequence[int]) -> NDArray[np.int64]:
        backend = self._backend
        samples = self._library.loaded_samples
        start_ns = perf_counter_ns()
        classes = [
            int(backend.infer(backend.preprocess_image(samples[index]))[0].argmax())
            for index in indices
        ]
        self._query_inference_ns += perf_counter_ns() - start_ns
        return np.array(classes, np.int64)


def make_query_stage(backend: Backend, scope: str, calls: int) -> Callable[[Any], Any]:
    """Return the stage that edgetl's own loop times: a query of `calls` calls, without LoadGen."""
    if scope == "image":
        return lambda query: [
            int(backend.infer(backend.preprocess_image(image))[0].argmax()) for image in query
        ]
    if calls == 1:
        return lambda query: backend.infer(query[0])
    return lambda query: [backend.infer(batch) for batch in query]
