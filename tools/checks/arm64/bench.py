"""Run a minimal bench under emulation: python bench.py BUNDLE RUNTIME."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from edgetl.cli.bench_tables import show_bench_result
from edgetl.core.config.bench import BenchConfig
from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.bench.runner import bench

MINIMAL_PROTOCOL = BenchProtocol(
    block_seconds=0.1,
    block_runs=5,
    slices=1,
    slice_warm_runs=1,
    window_seconds=0.1,
    window_runs=2,
    max_windows=2,
)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = BenchConfig(
            Path(sys.argv[1]),
            scopes=("model",),
            torch_modes=(),
            runtimes=(sys.argv[2],),
            rounds=2,
            output=Path(folder, "result.json"),
        )
        result = bench(config, protocol=MINIMAL_PROTOCOL)
    if not result.is_emulated:
        print("The CPU is not emulated. For a valid benchmark, run `edgetl bench`.")
    show_bench_result(result)


if __name__ == "__main__":
    main()
