"""How long and how often to measure."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class BenchProtocol:
    """The defaults are what a published figure needs; tests take less."""

    block_seconds: float = 1.0
    """Least time a block measures one scope."""
    block_runs: int = 100
    """Least runs of a block in one scope."""
    slices: int = 5
    """Parts of a block; the processes of a round take turns slice by slice, because a machine's speed changes within seconds."""
    gpu_block_seconds: float = 2.0
    """Least time of a block on a GPU, whose energy counter needs it."""
    slice_warm_runs: int = 2
    """Runs before a slice that are not measured: they bring back into the caches what the others have taken."""
    paced_seconds: float = 3.0
    """Least time of a block with paced arrivals: 8 rounds at 30 a second support a p99."""
    paced_runs: int = 20
    """Least arrivals of such a block."""
    paced_seconds_at_most: float = 30.0
    """Such a block ends then, however many arrivals still wait for their turn."""
    window_seconds: float = 0.1
    """Least time of a warm-up window."""
    window_runs: int = 10
    """Least runs of a warm-up window."""
    max_windows: int = 15
    """Warm-up ends here even if it is not steady, and the row says so."""
    warmup_seconds: float = 10.0
    """And, once two windows were seen, after this time: on a busy machine one run can take a hundred times as long."""
    steady_within: float = 0.02
    """Two successive windows whose medians differ by less are steady."""
    random_inputs: int = 8
    """Inputs to rotate through where a model brings no images."""
    sustained_window_seconds: float = 1.0
    """Length of a window of a sustained run."""
    profiled_runs: int = 50
    """Runs that an operator's time is the median of."""

    def for_gpu(self) -> BenchProtocol:
        """Return the protocol of a process on a GPU: one slice, long enough for the energy counter.

        Such a process lives alone, so there are no turns to take. Between slices the GPU would
        fall idle, and its idle energy would count as the images'.
        """
        return replace(
            self, slices=1, block_seconds=max(self.block_seconds, self.gpu_block_seconds)
        )


QUICK_PROTOCOL = BenchProtocol(block_seconds=0.4)
"""Where a figure is to be had soon, and the number of rounds says what it is worth."""
