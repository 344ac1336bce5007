"""The table of exit codes, and the codes of signals."""

from __future__ import annotations

import re

from edgetl.cli.exit_codes import ExitCode
from edgetl.cli.interruption import interrupted_exit_status
from edgetl.fleet.bench import MEASURED_STATUSES
from tests.conftest import ROOT


def test_reference_lists_all_exit_codes() -> None:
    page = (ROOT / "docs/reference/exit-codes.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (\w+) \|", page, re.MULTILINE)
    assert [(int(code), name) for code, name in rows] == [(code, code.name) for code in ExitCode]


def test_ctrl_c_exits_with_interrupted() -> None:
    assert interrupted_exit_status() == ExitCode.INTERRUPTED == 130
    assert (ExitCode.TERMINATED, ExitCode.HANGUP) == (143, 129)


def test_measured_hosts_are_not_failures() -> None:
    assert set(MEASURED_STATUSES) == {ExitCode.OK, ExitCode.FAILED_CHECK, ExitCode.UNDECIDED}
