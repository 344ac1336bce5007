from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from edgetl.device.hardware.memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
def work():
    for _ in range(20):
        np.ones(4_000_000, np.uint8)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_kept() -> None:
    def faults(choice: str) -> tuple[str, int]:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, choice],
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
            check=True,
        )
        kept, count = done.stdout.split()
        return kept, int(count)

    assert faults("keep")[0] == "True"
    assert faults("keep")[1] < 100
