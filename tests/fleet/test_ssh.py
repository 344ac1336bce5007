from __future__ import annotations

import pytest

from edgetl.fleet.ssh import RemoteError, SshHost


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("ssh 'unclosed", "must be a command"),
        ("", "is empty"),
        ("/nowhere/ssh", "/nowhere/ssh not found"),
        ("/etc/hostname", "Cannot start /etc/hostname"),
    ],
)
def test_ssh_command_that_cannot_be_started_is_reported(
    command: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGETL_SSH", command)
    with pytest.raises(RemoteError, match=message):
        SshHost("device").remove("/tmp/edgetl-x")
