"""One device behind OpenSSH."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any

from edgetl.core.errors import BenchError, ConfigError
from edgetl.fleet.payload import Payload, parse_reply

SSH_ENV_VAR = "EDGETL_SSH"
"""Environment variable: the command to use for ssh, with options of its own if need be."""
_SSH_OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": "10",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
}
"""Nobody is asked for a password by several hosts at once; a host that has died is noticed within 20 seconds."""
_MAX_LINE_BYTES, _MAX_LINES = 4096, 1000
"""Of a host's words: bytes of a line, and lines."""
_MAX_REPLY_BYTES = 256 * 2**20
"""Bytes of a reply: it holds every latency of a bench."""
_SSH_FAILURE_STATUS = 255
"""ssh's own exit status where the connection is what failed."""
_UNPACK_SCRIPT = """
lacking="edgetl: there is no Python 3.11 or newer with venv there: \\`sudo apt install python3 python3-venv\\`"
for python in python3 python3.14 python3.13 python3.12 python3.11 ""; do
    [ -z "$python" ] && { echo "$lacking" >&2; exit 3; }
    "$python" -c "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))" 2>/dev/null && break
done
umask 077
folder=$(mktemp -d "${TMPDIR:-/tmp}/edgetl-XXXXXXXX") || exit 3
if tar -xf - -C "$folder"; then echo "$python $folder"; else rm -rf "$folder"; exit 3; fi
"""


class RemoteError(BenchError):
    """What a device could not do; the others go on."""


class LineReader:
    """Reads a host's lines in a thread of its own; keeps the last of them, each cut to a bounded length."""

    def __init__(
        self, stream: IO[bytes] | None, heard: Callable[[str], None] = lambda line: None
    ) -> None:
        """Begin to read; `heard` is given each line that is not blank, from the thread."""
        assert stream is not None
        self._stream, self._on_line = stream, heard
        self._lines: deque[str] = deque(maxlen=_MAX_LINES)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def last_lines(self) -> list[str]:
        """The last lines that were read."""
        return list(self._lines)

    def join(self) -> None:
        """Wait a moment for what is still on its way."""
        self._thread.join(5)

    def _read(self) -> None:
        continued = False
        while line := self._stream.readline(_MAX_LINE_BYTES):
            text = line.decode(errors="replace").rstrip()
            if text and not continued:
                self._lines.append(text)
                self._on_line(text)
            # Only the first part of a longer line is kept.
            continued = not line.endswith(b"\n")


class SshHost:
    """A host, as `ssh` knows it: an alias, user@host, or ssh://user@host:port."""

    def __init__(self, host: str) -> None:
        """Raises:
        ConfigError: it is no name of a host.
        """
        if not host or host.startswith("-") or re.search(r"[\s\x00-\x1f]", host):
            raise ConfigError(
                f"--host {host!r} is no host: give an alias of ~/.ssh/config, user@device or ssh://user@device:port."
            )
        self.address = host
        self._process: subprocess.Popen[Any] | None = None
        self._close_event = threading.Event()

    def send(self, parcel: Payload) -> tuple[str, str]:
        """Copy it; the Python to use there, and the folder that it lies in.

        Raises:
            RemoteError: the host cannot be reached, lets nobody in, lacks something, or has no room.
        """
        process = self._start(_UNPACK_SCRIPT)
        assert process.stdin is not None
        # Read while the parcel is written: a host that prints before it reads would fill its pipe and wait.
        said, complaints = LineReader(process.stdout), LineReader(process.stderr)
        try:
            parcel.write(process.stdin)
        except (BrokenPipeError, ConnectionResetError):
            pass  # what it said tells why
        except OSError as cause:
            self.close()
            raise RemoteError(
                f"What is sent cannot be read ({cause.filename or cause}: {cause.strerror}). Export the bundle again."
            ) from cause
        finally:
            with suppress(BrokenPipeError, ConnectionResetError):
                process.stdin.close()
        status = process.wait()
        said.join()
        complaints.join()
        if status:
            raise RemoteError(self._failure_message(status, "\n".join(complaints.last_lines)))
        python, _, folder = (said.last_lines[-1] if said.last_lines else "").partition(" ")
        if not folder.startswith("/"):
            raise RemoteError(
                f"It answered {folder or python or 'nothing'!r} instead of where the parcel lies."
            )
        return python, folder

    def run(
        self,
        python: str,
        folder: str,
        told: Callable[[dict[str, Any]], None],
        heard: Callable[[str], None],
    ) -> dict[str, Any]:
        """Let it work there.

        Args:
            told: given each reply of the device's side.
            heard: given each line that a step says.

        Raises:
            RemoteError: the connection was lost, or the device's side ended without a word.
        """
        process = self._start(f"exec {shlex.quote(python)} {shlex.quote(folder)}/agent.py")
        assert process.stdout is not None
        words = LineReader(process.stderr, heard)
        last: dict[str, Any] = {}
        while line := process.stdout.readline(_MAX_REPLY_BYTES):
            if (said := parse_reply(line.decode(errors="replace"))) is not None:
                last = said
                told(said)
        status = process.wait()
        words.join()
        lines = words.last_lines
        if "status" not in last and "failed" not in last:
            raise RemoteError(self._failure_message(status, "\n".join(lines)))
        if "failed" in last:
            reason = next(
                (line for line in reversed(lines) if line.startswith("ERROR: ")),
                lines[-1] if lines else "",
            )
            raise RemoteError(f"{last['failed']} {reason.removeprefix('ERROR: ')}".strip())
        if type(last["status"]) is not int or not isinstance(last.get("result"), dict | None):
            raise RemoteError("It answered something else than a status and a result.")
        return {
            "status": last["status"],
            "result": last.get("result"),
            "left": bool(last.get("left")),
            "words": lines,
        }

    def remove(self, folder: str) -> bool:
        """Remove what may have been left; whether that is certain."""
        if self._close_event.is_set():
            return False
        try:
            return self._start(f"rm -rf -- {shlex.quote(folder)}").wait(30) == 0
        except subprocess.TimeoutExpired:
            self.close()
            return False

    def close(self) -> None:
        """End the connection; what was begun there ends with it."""
        self._close_event.set()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def _start(self, script: str) -> subprocess.Popen[bytes]:
        options = [
            part for name, value in _SSH_OPTIONS.items() for part in ("-o", f"{name}={value}")
        ]
        command = [
            *_ssh_command(),
            *options,
            "-T",
            "--",
            self.address,
            f"sh -c {shlex.quote(script)}",
        ]
        if self._close_event.is_set():
            raise RemoteError("ended")
        try:
            # A session of its own: Ctrl-C reaches edgetl alone, which ends every connection in order.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except FileNotFoundError as cause:
            raise RemoteError(
                f"There is no {command[0]} here: `sudo apt install openssh-client`."
            ) from cause
        except OSError as cause:
            raise RemoteError(
                f"{command[0]} cannot be started ({cause.strerror}). Set {SSH_ENV_VAR} to an ssh that can."
            ) from cause
        return self._process

    def _failure_message(self, status: int, complaints: str) -> str:
        said = [
            line.strip()
            for line in complaints.splitlines()
            if line.strip() and not line.startswith("Warning: Permanently added")
        ]
        if own := next(
            (line.removeprefix("edgetl: ") for line in said if line.startswith("edgetl: ")), None
        ):
            return own
        reason = said[-1].removeprefix("ssh: ").rstrip(".") if said else ""
        if status == _SSH_FAILURE_STATUS and "Permission denied" in reason:
            return f"{reason}. Let a key in without a password: `ssh-copy-id {self.address}`."
        if status == _SSH_FAILURE_STATUS or status < 0:
            return f"The connection was lost or never made: {reason or 'no word'}. See whether `ssh {self.address} true` works."
        return f"It ended with status {status}: {reason or 'no word'}."


def _ssh_command() -> list[str]:
    text = os.environ.get(SSH_ENV_VAR, "ssh")
    try:
        command = shlex.split(text)
    except ValueError as cause:
        raise RemoteError(
            f"{SSH_ENV_VAR}={text!r} is no command ({cause}). Unset it, or give ssh with its options."
        ) from cause
    if not command:
        raise RemoteError(f"{SSH_ENV_VAR} is empty. Unset it, or give ssh with its options.")
    return command
