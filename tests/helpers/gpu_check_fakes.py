"""Small steps with known results, for the tests of the GPU check's runner."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from tools.checks.gpu_check.record import Record
from tools.checks.gpu_check.settings import Settings


def passing(_settings: Settings, record: Record) -> None:
    record.measure(answer=42)
    record.require("the answer is 42", True, 42)


def failing(_settings: Settings, record: Record) -> None:
    record.measure(answer=41)
    record.require("the answer is 42", False, 41)
    record.require("later requirements are still checked", True)


def raising(_settings: Settings, _record: Record) -> None:
    raise RuntimeError("no such kernel")


def silent(_settings: Settings, _record: Record) -> None:
    return


def hanging(settings: Settings, record: Record) -> None:
    """Measure something, start a child in its own session, and hang."""
    record.measure(answer=42)
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    child = subprocess.Popen(sleeper, start_new_session=True)
    (settings.folder / "child").write_text(str(child.pid))
    time.sleep(600)


def leaving(settings: Settings, record: Record) -> None:
    """Pass and leave a child process running."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (settings.folder / "child").write_text(str(child.pid))
    record.require("the child was started", Path(f"/proc/{child.pid}").exists())
