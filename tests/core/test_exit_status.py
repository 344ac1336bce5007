from __future__ import annotations

import subprocess

import pytest

from edgetl.core.exit_status import describe_exit_status, is_illegal_instruction


@pytest.mark.parametrize(
    ("command", "description"),
    [
        ("exit 3", "exited with status 3"),
        ("kill -KILL $$", "was killed by SIGKILL (often: out of memory)"),
        (
            "kill -ILL $$",
            "was killed by SIGILL (illegal instruction, usually one that this CPU lacks)",
        ),
        ("kill -SEGV $$", "was killed by SIGSEGV"),
    ],
)
def test_description_names_signal_and_cause(command: str, description: str) -> None:
    status = subprocess.run(["sh", "-c", f"ulimit -c 0; {command}"]).returncode
    assert describe_exit_status(status) == description
    assert is_illegal_instruction(status) == ("SIGILL" in description)


def test_unknown_signal_is_described_by_number() -> None:
    assert describe_exit_status(-40) == "was killed by signal 40"
