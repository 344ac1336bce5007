"""A real sshd on loopback, run by the current user, with temporary keys and configuration."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


class Sshd:
    """An SSH host that can be killed.

    Args:
        folder: new folder for its keys, configuration and temporary files.
        environment: additional environment variables of its sessions.
    """

    def __init__(self, folder: Path, **environment: str) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        for name in ("host", "user"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)],
                check=True,
            )
        shutil.copy(folder / "user.pub", folder / "authorized_keys")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        variables = {"TMPDIR": str(self.temporary), **environment}
        set_env = " ".join(f'"{name}={value}"' for name, value in variables.items())
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\n"
            f"AuthorizedKeysFile {folder}/authorized_keys\nPidFile {folder}/pid\n"
            "StrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            f"KbdInteractiveAuthentication no\nSetEnv {set_env}\n"
        )
        if os.getuid() == 0:
            # Required by privilege separation on Debian.
            Path("/run/sshd").mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            [str(SSHD), "-D", "-f", str(folder / "sshd_config"), "-E", str(folder / "log")],
            start_new_session=True,
        )
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError((folder / "log").read_text())

    def alias(self, name: str, key: str = "user") -> str:
        """Return a host section for the configuration of an SSH client."""
        return (
            f"Host {name}\n HostName 127.0.0.1\n Port {self.port}\n"
            f" IdentityFile {self.folder / key}\n IdentitiesOnly yes\n"
            f" StrictHostKeyChecking no\n UserKnownHostsFile {self.folder}/known_hosts\n"
        )

    def die(self) -> None:
        """Kill sshd and its connections at once, as if the power were cut."""
        for pid in [*_sshd_descendants(self.process.pid), self.process.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.die()


def _sshd_descendants(pid: int) -> list[int]:
    """Return the descendants that are sshd processes, without the programs of the sessions."""
    try:
        children = list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return []
    programs = (b"sshd", b"/usr/lib/openssh/sshd")
    sshd_children = [
        child
        for child in children
        if Path(f"/proc/{child}/cmdline").read_bytes().startswith(programs)
    ]
    descendants = [pid for child in sshd_children for pid in _sshd_descendants(child)]
    return [*descendants, *sshd_children]
