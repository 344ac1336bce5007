"""Exclusive locks, held against threads, other processes and forked children."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from edgetl.core.errors import RunError
from edgetl.core.locks import exclusive_lock
from tests.conftest import ROOT

HOLDER = """
import os, sys, time
from pathlib import Path
from edgetl.core.locks import exclusive_lock
with exclusive_lock(Path(sys.argv[1]), BlockingIOError()):
    worker = os.fork()
    if worker:
        print(worker, flush=True)
    time.sleep(60)
"""


def lock(path: Path) -> AbstractContextManager[None]:
    return exclusive_lock(path, RunError("in use"))


def is_locked(path: Path) -> bool:
    try:
        with lock(path):
            return False
    except RunError:
        return True


def test_lock_excludes_until_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock(path):
        assert path.exists()
        assert is_locked(path)
        assert path.exists(), "a refused process leaves the lock file"
    assert not path.exists()
    assert not is_locked(path)


def test_lock_is_released_after_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock(tmp_path / "lock"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_lock_is_released_by_kill_despite_forked_worker(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    try:
        assert is_locked(path)
        process.kill()
        process.wait()
        os.kill(worker, 0)
        # On a busy machine the new worker may not have closed the inherited lock yet.
        deadline = time.monotonic() + 20
        while is_locked(path):
            assert time.monotonic() < deadline, "the worker holds the lock"
            time.sleep(0.05)
    finally:
        process.kill()
        os.kill(worker, signal.SIGKILL)
        process.stdout.close()


def test_one_thread_at_a_time_holds_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holders: list[int] = []
    peak = 0

    def count_locks(thread: int) -> int:
        nonlocal peak
        locks, deadline = 0, time.monotonic() + 1
        while time.monotonic() < deadline:
            try:
                with lock(path):
                    holders.append(thread)
                    peak = max(peak, len(holders))
                    time.sleep(0)
                    holders.remove(thread)
                    locks += 1
            except RunError:
                pass
        return locks

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(count_locks, range(8))) > 1
    assert peak == 1


def test_lock_file_of_moved_folder_stays(tmp_path: Path) -> None:
    old, new = tmp_path / "run", tmp_path / "aside"
    old.mkdir()
    with lock(old / "lock"):
        old.rename(new)
        old.mkdir()
        with lock(old / "lock"):
            assert is_locked(new / "lock")
            assert is_locked(old / "lock")
        (old / "lock").touch()
    assert (old / "lock").exists(), "only its own file is removed"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_file_system_without_locks_excludes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock(tmp_path / "lock"):
        assert not is_locked(tmp_path / "lock")


def test_lock_in_missing_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), lock(tmp_path / "missing" / "lock"):
        pytest.fail("not refused")
