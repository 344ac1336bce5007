"""Worker process that runs cases and prints a JSON line before and after each.

    python -m tools.checks.fuzz.worker TARGET SEED FIRST COUNT FAILURES

All cases run in one process, since importing PyTorch takes seconds. Memory is the peak resident
memory of a single call; Linux resets the peak through /proc/self/clear_refs. The address space is
limited, so that a decompression bomb raises MemoryError instead of making the machine swap.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from edgetl.core.errors import EdgetlError
from tools.checks.fuzz.target import Target
from tools.checks.fuzz.targets import load_target

LIMIT_S = 10
LIMIT_BYTES = 2**30
"""Limit on the increase of resident memory during a call."""
_HEADROOM_BYTES = 4 * 2**30
"""Limit on the growth of the address space after the warm-up."""
_WARM_UP_CASES = 3
"""Cases to run before counting, so that memory of lazy imports is not charged to a case."""


class _TimeLimitError(BaseException):
    """The time limit of a case was exceeded. Not caught by `except Exception`."""


def run_cases(name: str, seed: int, first: int, count: int, failures: Path) -> None:
    """Create and use cases `first` to `first + count - 1`.

    Args:
        name: key of TARGETS.
        seed: seed of the mutations.
        first: number of the first case.
        count: number of cases.
        failures: folder for failing inputs; ignored if it does not exist.
    """
    warnings.simplefilter("ignore")
    # Print the JSON lines to the original stdout and discard what libraries print.
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    target = load_target(name)
    with tempfile.TemporaryDirectory(prefix="edgetl-fuzz-") as scratch:
        originals = Path(scratch, "originals")
        originals.mkdir()
        target.prepare(originals)
        for number in range(-_WARM_UP_CASES, 0):
            folder = Path(scratch, "warm-up")
            use_case(target, _make_case(target, originals, folder, random.Random(number)))
        _, virtual = _memory_bytes()
        resource.setrlimit(resource.RLIMIT_AS, (virtual + _HEADROOM_BYTES, resource.RLIM_INFINITY))
        for number in range(first, first + count):
            print(json.dumps({"running": number}), file=lines)
            # The seed includes the number, so that each case can be reproduced alone.
            generator = random.Random(f"{seed} {name} {number}")
            case = _make_case(target, originals, Path(scratch, "case"), generator)
            if failures.is_dir():
                pending = failures / f"{name}-{seed}-{number}"
                shutil.copytree(case, pending)
            outcome = use_case(target, case)
            if outcome["outcome"] in ("read", "refused") and failures.is_dir():
                shutil.rmtree(pending)
            print(json.dumps({"case": number, **outcome}), file=lines)


def _make_case(target: Target, originals: Path, case: Path, generator: random.Random) -> Path:
    shutil.rmtree(case, ignore_errors=True)
    case.mkdir()
    target.make_case(generator, originals, case)
    return case


def use_case(target: Target, case: Path) -> dict[str, Any]:
    """Use a case and return its outcome, a message, the memory it added and its time.

    Keys: outcome (read, refused, failed, hung or memory), message, bytes, seconds.
    """
    before, _ = _memory_bytes()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    started = time.perf_counter()
    outcome, message = "read", ""
    try:
        with _time_limit():
            target.use(case)
    except EdgetlError as error:
        outcome, message = "refused", type(error).__name__
        if len(str(error)) > 5000 or not str(error).strip():
            outcome, message = "failed", f"error message of {len(str(error))} characters"
    except _TimeLimitError:
        outcome, message = "hung", f"more than {LIMIT_S} s"
    except Exception as error:
        outcome, message = "failed", "".join(traceback.format_exception(error)[-3:])[-1500:]
    increase = max(0, _status_bytes("VmHWM") - before)
    if outcome in ("read", "refused") and increase > LIMIT_BYTES:
        outcome, message = "memory", f"{increase / 2**20:.0f} MiB"
    return {
        "outcome": outcome,
        "message": message,
        "bytes": increase,
        "seconds": time.perf_counter() - started,
    }


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def stop(signal_number: int, frame: FrameType | None) -> None:
        raise _TimeLimitError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)


def _memory_bytes() -> tuple[int, int]:
    return _status_bytes("VmRSS"), _status_bytes("VmSize")


def _status_bytes(name: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    match = re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


if __name__ == "__main__":
    run_cases(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
