"""Session of ExecuTorch, whose Python bindings take and return torch tensors.

No tensor operation of PyTorch runs. Without PyTorch the bindings of ExecuTorch 1.5 cannot be loaded
(https://github.com/pytorch/executorch/issues/22971).
"""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.core.artifacts.session import ProfiledNode
from edgetl.core.errors import BundleError, MissingPackageError
from edgetl.device.runtime.sessions.session import SessionFacts, SessionSource, load_error

_METHOD = "forward"
_KERNEL_PATTERN = re.compile(
    r"(?:Convolution|Deconvolution|Fully Connected|Batch Matrix Multiply) \(([^)]*)\)"
)
"""XNNPACK's names of compute kernels, such as `Fully Connected (NC, QS8, QC8W) GEMM #1`."""
_PORTABLE_PATTERN = re.compile(r"native_call_(?:convolution|addmm|mm|bmm|linear)\b")
"""Compute kernels of ExecuTorch itself, for operators that XNNPACK did not take; float32 only."""
_TOTAL_EVENTS = ("DELEGATE_CALL", "OPERATOR_CALL")
"""Events that include the time of others."""


class ExecuTorchSession:
    """A program whose operators run in XNNPACK.

    XNNPACK's pool of threads belongs to the process: sessions with other thread counts replace it,
    and the others load their programs again.
    """

    output_names = ("logits",)

    def __init__(self, source: SessionSource) -> None:
        self._path = source.files[0]
        self._threads = source.threads
        self._shape = (1, 3, source.crop, source.crop)
        self._bindings, self._from_numpy = _load_bindings()
        with _POOL.lock:
            self._load()

    def run(self, names: Sequence[str], batch: NDArray[Any]) -> list[NDArray[Any]]:
        """Return the outputs `names` for float32 [batch, 3, crop, crop].

        The images run one after the other: a program of variable batch is slower
        (eight images of MobileNetV2 in float32 take 72 ms of processor time, against 62).
        """
        pixels = np.ascontiguousarray(batch, np.float32)
        with _POOL.lock:
            if not _POOL.is_current(self._threads, self._generation):
                self._load()
            rows = [self._infer(pixels[index : index + 1]) for index in range(len(pixels))]
        logits = rows[0] if len(rows) == 1 else np.concatenate(rows)
        return [logits for _ in names]

    def describe(self) -> SessionFacts:
        """Return what ran: XNNPACK's kernels, from the events of an inference."""
        events = self._trace(np.zeros(self._shape, np.float32), 1)
        with _POOL.lock:
            if not _POOL.is_current(self._threads, self._generation):
                self._load()
            threads = int(self._bindings._threadpool_get_thread_count())
        options = {"torch": version("torch")}
        if events:
            options["operators in XNNPACK"] = _count_delegated(events)
        return SessionFacts(
            version=version("executorch"),
            threads=threads,
            precision_shares=_precision_shares(list(events)),
            options=options,
        )

    def profile(self, pixels: NDArray[np.float32], runs: int) -> list[ProfiledNode]:
        """Return the median time of each operator; empty if ExecuTorch was built without events."""
        events = self._trace(pixels[:1], runs)
        total = sum(us for us, _ in events.values()) or 1.0
        return [
            ProfiledNode(name, _operator(name), provider, us, us / total)
            for name, (us, provider) in sorted(events.items(), key=lambda item: -item[1][0])
        ]

    def _load(self) -> None:
        """Load the program into a pool of the session's size; the caller holds the lock."""
        self._generation = _POOL.resize(self._bindings, self._threads)
        self._program, self._method = self._load_program(trace=False)

    def _load_program(self, trace: bool) -> tuple[Any, Any]:
        bindings = self._bindings
        try:
            # The method uses memory of the program, which has to live as long.
            program = bindings._load_program(
                str(self._path),
                enable_etdump=trace,
                program_verification=bindings.Verification.InternalConsistency,
            )
            sizes = tuple(program.method_meta(_METHOD).input_tensor_meta(0).sizes())
            if sizes != self._shape:
                raise RuntimeError(f"its input is {sizes} instead of {self._shape}.")
            return program, program.load_method(_METHOD)
        except (RuntimeError, IndexError, KeyError, ValueError) as cause:
            raise load_error("executorch", version("executorch"), [self._path], cause) from cause

    def _infer(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            logits: NDArray[np.float32] = self._method([self._from_numpy(image)])[0].numpy()
        except RuntimeError as cause:
            message = " ".join(str(cause).split())
            raise BundleError(
                f"The model cannot be run: {message} Export the bundle again."
            ) from cause
        return logits

    def _trace(self, image: NDArray[np.float32], runs: int) -> dict[str, tuple[float, str]]:
        """Return the median microseconds and the backend of each operator, in order."""
        with _POOL.lock:
            if not _POOL.is_current(self._threads, self._generation):
                self._load()
            program, method = self._load_program(trace=True)
            tensor = self._from_numpy(np.ascontiguousarray(image, np.float32))
            for _ in range(runs):
                method([tensor])
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "events.etdp"
                try:
                    program.write_etdump_result_to_file(str(path), None)
                except RuntimeError:  # built without events
                    return {}
                return _read_events(path)


class _ThreadPool:
    """XNNPACK's pool of threads, one for the process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._threads: int | None = None
        self._generation = 0

    def is_current(self, threads: int, generation: int) -> bool:
        """Return whether the pool has this size and was not replaced since `generation`."""
        return (self._threads, self._generation) == (threads, generation)

    def resize(self, bindings: ModuleType, threads: int) -> int:
        """Replace the pool unless it has this size, and return its generation.

        A loaded program keeps a pointer to the pool that it was loaded with.
        """
        if self._threads != threads:
            with _without_stderr():
                bindings._unsafe_reset_threadpool(threads)
            self._threads = threads
            self._generation += 1
        return self._generation


_POOL = _ThreadPool()


def _load_bindings() -> tuple[ModuleType, Any]:
    """Return the C++ bindings of ExecuTorch and the function that wraps an array in a tensor.

    Raises:
        MissingPackageError: ExecuTorch or PyTorch is missing, or they do not fit together.
    """
    try:
        # The bindings find PyTorch's libraries only after its import.
        import torch

        # `executorch.runtime` wraps the same bindings, but imports the exporter first: 5 s against
        # 0.01 s.
        from executorch.extension.pybindings import _C
    except ImportError as cause:
        raise MissingPackageError(
            f"ExecuTorch cannot be loaded ({cause}). It needs PyTorch, in a version that it fits. "
            'Run `pip install --upgrade "edgetl[executorch]"`.'
        ) from cause
    return _C, torch.from_numpy


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Discard what C++ code writes to stderr; ExecuTorch has no option for its log."""
    sys.stderr.flush()
    saved = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def _read_events(path: Path) -> dict[str, tuple[float, str]]:
    """Return the median microseconds and the backend of each operator of a trace."""
    # Importing it brings in PyTorch's exporter, which warns of its dependencies.
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    from executorch.devtools import Inspector

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the trace holds no values of tensors
        blocks = Inspector(etdump_path=str(path)).event_blocks
    events: dict[str, tuple[float, str]] = {}
    for block in blocks:
        for event in block.events:
            if event.perf_data is None or block.name != "Execute":
                continue
            if event.name in _TOTAL_EVENTS or event.name.startswith("Method::"):
                continue
            provider = "XNNPACK" if event.is_delegated_op else "portable"
            name = event.name
            # The same kernel of several parts of a program has the same name.
            count = 2
            while name in events:
                name, count = f"{event.name} ({count})", count + 1
            events[name] = (float(np.median(event.perf_data.raw)) * 1000, provider)
    return events


def _operator(name: str) -> str:
    """Return the name of a kernel without its number."""
    return re.sub(r" #\d+.*$", "", name)


def _count_delegated(events: Mapping[str, tuple[float, str]]) -> str:
    delegated = sum(provider == "XNNPACK" for _, provider in events.values())
    return f"{delegated} of {len(events)}"


def _precision_shares(names: Sequence[str]) -> dict[str, float]:
    """Return the share of compute kernels by precision, from their names."""
    counts: Counter[str] = Counter()
    for name in names:
        kernel = _KERNEL_PATTERN.match(name)
        if kernel is not None:
            counts[_precision(kernel[1])] += 1
        elif _PORTABLE_PATTERN.match(name):
            counts["fp32"] += 1
    total = sum(counts.values())
    return {name: count / total for name, count in counts.most_common()}


def _precision(types: str) -> str:
    """Return the precision of a kernel from its types, such as `NC, QS8, QC8W`."""
    words = types.split(", ")
    if any(re.fullmatch(r"Q[A-Z]+8W?", word) for word in words):
        return "int8"
    if "F16" in words:
        return "fp16"
    return "bf16" if "BF16" in words else "fp32"
