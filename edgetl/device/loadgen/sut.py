"""LoadGen's system under test: an opened model that answers queries inside the call that brings them, without a queue."""

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
    """Answers LoadGen with the class of each sample, int64, and keeps its own times beside LoadGen's."""

    def __init__(
        self, backend: Backend, library: QuerySampleLibrary, scope: str, batch: int, loadgen: Any
    ) -> None:
        self._backend, self._library, self._batch, self._loadgen_module = (
            backend,
            library,
            batch,
            loadgen,
        )
        self._classify = (
            self._classify_images
            if scope == "image"
            else self._classify_sample
            if batch == 1
            else self._classify_batch
        )
        self._batch_buffer: NDArray[Any] | None = None
        self._parent_pid = os.getppid()
        self.callback_ns: list[int] = []
        """For each query from its arrival to the handing over of its last answers."""
        self.inference_ns: list[int] = []
        """Of each query's time the part that the bench would time: from a sample that is ready to its answer."""
        self._query_inference_ns = 0
        self.issued_samples = 0

    def issue_query(self, query: Sequence[Any]) -> None:
        """LoadGen's IssueQuery: answer all samples of a query, call by call."""
        arrived = perf_counter_ns()
        done, self._query_inference_ns = arrived, 0
        respond, complete, batch = (
            self._loadgen_module.QuerySampleResponse,
            self._loadgen_module.QuerySamplesComplete,
            self._batch,
        )
        for first in range(0, len(query), batch):
            part = query[first : first + batch] if len(query) > batch else query
            classes = self._classify([sample.index for sample in part])
            address = classes.ctypes.data
            answers = [
                respond(sample.id, address + 8 * place, 8) for place, sample in enumerate(part)
            ]
            done = perf_counter_ns()
            complete(answers)
            # Whoever waits for the result may have been ended: then nobody wants the rest.
            if os.getppid() != self._parent_pid:
                os._exit(1)
        self.callback_ns.append(done - arrived)
        self.inference_ns.append(self._query_inference_ns)
        self.issued_samples += len(query)

    def flush_queries(self) -> None:
        """LoadGen's FlushQueries: nothing waits."""

    def _classify_sample(self, indices: Sequence[int]) -> NDArray[np.int64]:
        return self._time_inference(self._library.loaded_samples[indices[0]])

    def _classify_batch(self, indices: Sequence[int]) -> NDArray[np.int64]:
        samples = [self._library.loaded_samples[index] for index in indices]
        if self._batch_buffer is None:
            self._batch_buffer = np.empty((self._batch, *samples[0].shape[1:]), samples[0].dtype)
        return self._time_inference(np.concatenate(samples, out=self._batch_buffer[: len(samples)]))

    def _time_inference(self, batch: NDArray[Any]) -> NDArray[np.int64]:
        begun = perf_counter_ns()
        logits = self._backend.infer(batch)
        self._query_inference_ns += perf_counter_ns() - begun
        classes: NDArray[np.int64] = logits.argmax(1)
        return classes

    def _classify_images(self, indices: Sequence[int]) -> NDArray[np.int64]:
        backend, ready = self._backend, self._library.loaded_samples
        begun = perf_counter_ns()
        classes = [
            int(backend.infer(backend.preprocess_image(ready[index]))[0].argmax())
            for index in indices
        ]
        self._query_inference_ns += perf_counter_ns() - begun
        return np.array(classes, np.int64)


def make_query_stage(backend: Backend, scope: str, calls: int) -> Callable[[Any], Any]:
    """What edgetl's own loop times for a query of `calls` calls: the same work without LoadGen around it."""
    if scope == "image":
        return lambda query: [
            int(backend.infer(backend.preprocess_image(image))[0].argmax()) for image in query
        ]
    if calls == 1:
        return lambda query: backend.infer(query[0])
    return lambda query: [backend.infer(batch) for batch in query]
