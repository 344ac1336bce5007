"""A real sshd on loopback, run by whoever runs the tests, with keys and configuration of its own."""

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
    """A host that may be killed; `environment` is what a session there finds beside sshd's own."""

    def __init__(self, folder: Path, **environment: str) -> None:
        folder.mkdir(parents=True)
        self.folder, self.temporary = folder, folder / "tmp"
        self.temporary.mkdir()
        for name in ("host", "user"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)],
                check=True,
            )
        shutil.copy(folder / "user.pub", folder / "authorized_keys")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        given = " ".join(
            f'"{name}={value}"'
            for name, value in {"TMPDIR": str(self.temporary), **environment}.items()
        )
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\n"
            f"PidFile {folder}/pid\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nSetEnv {given}\n"
        )
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # Debian's privilege separation wants it
        self.process = subprocess.Popen(
            [str(SSHD), "-D", "-f", str(folder / "sshd_config"), "-E", str(folder / "log")],
            start_new_session=True,
        )
        give_up = time.monotonic() + 10
        while time.monotonic() < give_up:
            with socket.socket() as found:
                if found.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError((folder / "log").read_text())

    def alias(self, name: str, key: str = "user") -> str:
        """A paragraph of a client's configuration."""
        return (
            f"Host {name}\n HostName 127.0.0.1\n Port {self.port}\n IdentityFile {self.folder / key}\n IdentitiesOnly yes\n"
            f" StrictHostKeyChecking no\n UserKnownHostsFile {self.folder}/known_hosts\n"
        )

    def die(self) -> None:
        """Like a board whose power is cut: sshd and its connections are gone at once."""
        for pid in [*_below(self.process.pid), self.process.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.die()


def _below(pid: int) -> list[int]:
    """sshd's own processes below it; what a session began is left, as an orphan."""
    try:
        children = [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []
    own = [
        child
        for child in children
        if Path(f"/proc/{child}/cmdline")
        .read_bytes()
        .startswith((b"sshd", b"/usr/lib/openssh/sshd"))
    ]
    return [*(deeper for child in own for deeper in _below(child)), *own]
