"""Measurement protocol: durations and repetitions."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class BenchProtocol:
    """Durations and counts of a measurement. The defaults suit published results."""

    block_seconds: float = 1.0
    """Minimum duration of a block in one scope."""
    block_runs: int = 100
    """Minimum number of inferences of a block in one scope."""
    slices: int = 5
    """Slices per block. Processes take turns by slice, as a machine's speed changes in seconds."""
    gpu_block_seconds: float = 2.0
    """Minimum duration of a block on a GPU, as needed by its energy counter."""
    slice_warm_runs: int = 2
    """Untimed inferences before a slice, to refill the caches after the other processes."""
    paced_seconds: float = 3.0
    """Minimum duration of a paced block; 8 rounds at 30 arrivals per second support a p99."""
    paced_runs: int = 20
    """Minimum number of arrivals of a paced block."""
    paced_seconds_at_most: float = 30.0
    """Maximum duration of a paced block, even if arrivals are still waiting."""
    window_seconds: float = 0.1
    """Minimum duration of a warm-up window."""
    window_runs: int = 10
    """Minimum number of inferences of a warm-up window."""
    max_windows: int = 15
    """Maximum number of warm-up windows; the row records if it is not steady by then."""
    warmup_seconds: float = 10.0
    """Maximum duration of warm-up after two windows.

    On a busy machine one inference can take a hundred times as long.
    """
    steady_within: float = 0.02
    """Largest relative difference between the medians of two steady windows."""
    random_inputs: int = 8
    """Number of random inputs for models without golden images."""
    sustained_window_seconds: float = 1.0
    """Duration of a window of a sustained measurement."""
    profiled_runs: int = 50
    """Number of profiled inferences; the time of an operator is their median."""

    def for_gpu(self) -> BenchProtocol:
        """Return the protocol of a process on a GPU: one slice, long enough for the energy counter.

        Such a process runs alone, so there are no turns to take. Between slices the GPU would be
        idle, and its idle energy would be attributed to the images.
        """
        return replace(
            self, slices=1, block_seconds=max(self.block_seconds, self.gpu_block_seconds)
        )


QUICK_PROTOCOL = BenchProtocol(block_seconds=0.4)
"""Shorter protocol for quick results; the number of rounds determines their precision."""
