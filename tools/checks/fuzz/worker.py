"""The process that uses cases: python -m tools.checks.fuzz.worker TARGET SEED FIRST COUNT FAILURES; a JSON line for each case.

Cases follow one another in one process, because PyTorch takes seconds to import. Memory is the peak of resident memory of the one call,
which Linux resets through /proc/self/clear_refs. An address space that is limited turns a bomb into a MemoryError instead of a machine
that swaps.
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
"""That one call may add to resident memory."""
_HEADROOM_BYTES = 4 * 2**30
_FIRST = 3
"""Calls on the originals before cases are counted: what is loaded once is no case's memory."""


class _TimeLimitError(BaseException):
    """Not caught by `except Exception`."""


def run_cases(name: str, seed: int, first: int, count: int, failures: Path) -> None:
    """Make and use cases `first` to `first + count - 1`; failing ones are kept in `failures`."""
    warnings.simplefilter("ignore")
    # What libraries print must not come between the lines.
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    target = load_target(name)
    with tempfile.TemporaryDirectory(prefix="edgetl-fuzz-") as scratch:
        originals = Path(scratch, "originals")
        originals.mkdir()
        target.prepare(originals)
        for number in range(-_FIRST, 0):
            use_case(
                target, _made(target, originals, Path(scratch, "warm-up"), random.Random(number))
            )
        _, virtual = _memory()
        resource.setrlimit(resource.RLIMIT_AS, (virtual + _HEADROOM_BYTES, resource.RLIM_INFINITY))
        for number in range(first, first + count):
            print(json.dumps({"begun": number}), file=lines)
            # A text as the seed: each case can be made again alone.
            case = _made(
                target, originals, Path(scratch, "case"), random.Random(f"{seed} {name} {number}")
            )
            if failures.is_dir():
                pending = failures / f"{name}-{seed}-{number}"
                shutil.copytree(case, pending)
            outcome = use_case(target, case)
            if outcome["outcome"] in ("read", "refused") and failures.is_dir():
                shutil.rmtree(pending)
            print(json.dumps({"case": number, **outcome}), file=lines)


def _made(target: Target, originals: Path, case: Path, generator: random.Random) -> Path:
    shutil.rmtree(case, ignore_errors=True)
    case.mkdir()
    target.make_case(generator, originals, case)
    return case


def use_case(target: Target, case: Path) -> dict[str, Any]:
    """Use a case: how it ended, the memory it added and the time it took."""
    before, _ = _memory()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    started = time.perf_counter()
    outcome, what = "read", ""
    try:
        with _limited():
            target.use(case)
    except EdgetlError as error:
        outcome, what = "refused", type(error).__name__
        if len(str(error)) > 5000 or not str(error).strip():
            outcome, what = "failed", f"a message of {len(str(error))} characters"
    except _TimeLimitError:
        outcome, what = "hung", f"more than {LIMIT_S} s"
    except Exception as error:
        outcome, what = "failed", "".join(traceback.format_exception(error)[-3:])[-1500:]
    peak = _status("VmHWM")
    grown = max(0, peak - before)
    if outcome in ("read", "refused") and grown > LIMIT_BYTES:
        outcome, what = "memory", f"{grown / 2**20:.0f} MiB"
    return {
        "outcome": outcome,
        "what": what,
        "bytes": grown,
        "seconds": time.perf_counter() - started,
    }


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(signal_number: int, frame: FrameType | None) -> None:
        raise _TimeLimitError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)


def _memory() -> tuple[int, int]:
    return _status("VmRSS"), _status("VmSize")


def _status(name: str) -> int:
    match = re.search(
        rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE
    )
    return int(match[1]) * 1024 if match else 0


if __name__ == "__main__":
    run_cases(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
