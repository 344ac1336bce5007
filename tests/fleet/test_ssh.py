from __future__ import annotations

import pytest

from edgetl.fleet.ssh import RemoteError, SshHost


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("ssh 'unclosed", "is no command"),
        ("", "is empty"),
        ("/nowhere/ssh", "There is no /nowhere/ssh here"),
        ("/etc/hostname", "cannot be started"),
    ],
)
def test_an_ssh_that_cannot_be_started_is_named(
    command: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGETL_SSH", command)
    with pytest.raises(RemoteError, match=told):
        SshHost("device").remove("/tmp/edgetl-x")
