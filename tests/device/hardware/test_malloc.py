from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import resource
import numpy as np
from edgetl.device.hardware.memory import keep_freed_memory
success = keep_freed_memory()
def allocate():
    for _ in range(20):
        np.ones(4_000_000, np.uint8)
allocate()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
allocate()
print(success, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_keep_freed_memory_avoids_page_faults() -> None:
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    success, page_faults = process.stdout.split()
    assert success == "True"
    assert int(page_faults) < 100
