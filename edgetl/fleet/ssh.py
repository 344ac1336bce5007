"""Remote host over OpenSSH."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO, Any

from edgetl.core.errors import BenchError, ConfigError
from edgetl.core.typed_json import FieldError
from edgetl.fleet.payload import AgentReply, Payload, parse_reply

SSH_ENV_VAR = "EDGETL_SSH"
"""Environment variable with the ssh command, optionally with options."""
_SSH_OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": "10",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
}
"""Options of ssh: no password prompts, and a dead host is detected within 20 seconds."""
_MAX_LINE_BYTES = 4096
_MAX_LINES = 1000
"""Number of output lines kept per host."""
_MAX_REPLY_BYTES = 256 * 2**20
"""Largest size of a reply, which contains every latency of a bench."""
_SSH_FAILURE_STATUS = 255
"""Exit status of ssh if the connection failed."""
_UNPACK_SCRIPT = """
error="edgetl: Python 3.11 or newer with venv not found on the device: \\`sudo apt install python3 python3-venv\\`"
for python in python3 python3.14 python3.13 python3.12 python3.11 ""; do
    [ -z "$python" ] && { echo "$error" >&2; exit 3; }
    "$python" -c "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))" 2>/dev/null && break
done
umask 077
folder=$(mktemp -d "${TMPDIR:-/tmp}/edgetl-XXXXXXXX") || exit 3
if tar -xf - -C "$folder"; then echo "$python $folder"; else rm -rf "$folder"; exit 3; fi
"""


class RemoteError(BenchError):
    """Failure of one host; the other hosts continue."""


class LineReader:
    """Reader of a host's output in a thread; keeps the last lines, each truncated."""

    def __init__(
        self, stream: IO[bytes] | None, on_line: Callable[[str], None] = lambda line: None
    ) -> None:
        """Start reading; `on_line` is called from the thread with each line that is not blank."""
        assert stream is not None
        self._stream = stream
        self._on_line = on_line
        self._lines: deque[str] = deque(maxlen=_MAX_LINES)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def last_lines(self) -> list[str]:
        """The last lines read."""
        return list(self._lines)

    def join(self) -> None:
        """Wait up to 5 seconds for the remaining output."""
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
    """A host, given as an alias of ssh, user@host or ssh://user@host:port."""

    def __init__(self, host: str) -> None:
        """Check the host's address.

        Raises:
            ConfigError: `host` is not a valid address.
        """
        if not host or host.startswith("-") or re.search(r"[\s\x00-\x1f]", host):
            raise ConfigError(
                "--host must be an alias of ~/.ssh/config, user@device or "
                f"ssh://user@device:port, got {host!r}."
            )
        self.address = host
        self._process: subprocess.Popen[Any] | None = None
        self._close_event = threading.Event()

    def send(self, payload: Payload) -> tuple[str, str]:
        """Copy the payload to a new folder on the host.

        Returns:
            The Python command to use there, and the folder.

        Raises:
            RemoteError: the host cannot be reached, denies access, has no suitable Python, or has
                no space.
        """
        process = self._start(_UNPACK_SCRIPT)
        assert process.stdin is not None
        # Read while the payload is written: a host that prints before it reads would deadlock.
        output = LineReader(process.stdout)
        errors = LineReader(process.stderr)
        try:
            payload.write(process.stdin)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the host's error output has the reason
        except OSError as cause:
            self.close()
            raise RemoteError(
                f"Cannot read the files to send ({cause.filename or cause}: {cause.strerror}). "
                "Export the bundle again."
            ) from cause
        finally:
            with suppress(BrokenPipeError, ConnectionResetError):
                process.stdin.close()
        status = process.wait()
        output.join()
        errors.join()
        if status:
            raise RemoteError(self._failure_message(status, errors.last_lines))
        last_line = output.last_lines[-1] if output.last_lines else ""
        python, _, folder = last_line.partition(" ")
        if not folder.startswith("/"):
            raise RemoteError(
                f"The host printed {folder or python or 'nothing'!r} instead of the folder's path."
            )
        return python, folder

    def run(
        self,
        python: str,
        folder: str,
        on_reply: Callable[[AgentReply], None],
        on_line: Callable[[str], None],
    ) -> tuple[AgentReply, list[str]]:
        """Run the agent on the host.

        Args:
            python: the Python command, see `send`.
            folder: the folder of the payload on the host.
            on_reply: called with each reply of the agent.
            on_line: called with each output line of the agent's steps.

        Returns:
            The last reply, whose `status` is not None, and the last output lines.

        Raises:
            RemoteError: the connection was lost, or the agent failed.
        """
        process = self._start(f"exec {shlex.quote(python)} {shlex.quote(folder)}/agent.py")
        assert process.stdout is not None
        errors = LineReader(process.stderr, on_line)
        last_reply = AgentReply()
        damage = ""
        while line := process.stdout.readline(_MAX_REPLY_BYTES):
            try:
                reply = parse_reply(line.decode(errors="replace"))
            except FieldError as cause:
                damage = str(cause)
                continue
            if reply is not None:
                last_reply = reply
                on_reply(reply)
        status = process.wait()
        errors.join()
        lines = errors.last_lines
        if damage:
            raise RemoteError(f"The agent's reply is damaged: {damage}.")
        if last_reply.failed is not None:
            last_line = lines[-1] if lines else ""
            pip_errors = [line for line in lines if line.startswith("ERROR: ")]
            reason = pip_errors[-1] if pip_errors else last_line
            raise RemoteError(f"{last_reply.failed} {reason.removeprefix('ERROR: ')}".strip())
        if last_reply.status is None:
            raise RemoteError(self._failure_message(status, lines))
        return last_reply, lines

    def remove(self, folder: str) -> bool:
        """Remove the folder on the host and return whether that succeeded."""
        if self._close_event.is_set():
            return False
        try:
            return self._start(f"rm -rf -- {shlex.quote(folder)}").wait(30) == 0
        except subprocess.TimeoutExpired:
            self.close()
            return False

    def close(self) -> None:
        """Close the connection, which also stops the agent on the host."""
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
            raise RemoteError("The connection was closed.")
        try:
            # In a new session, so that Ctrl-C reaches only edgetl, which closes all connections.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except FileNotFoundError as cause:
            raise RemoteError(
                f"{command[0]} not found. Install it with `sudo apt install openssh-client`."
            ) from cause
        except OSError as cause:
            raise RemoteError(
                f"Cannot start {command[0]} ({cause.strerror}). "
                f"Set {SSH_ENV_VAR} to a working ssh command."
            ) from cause
        return self._process

    def _failure_message(self, status: int, lines: Sequence[str]) -> str:
        error_lines = [
            line.strip()
            for line in "\n".join(lines).splitlines()
            if line.strip() and not line.startswith("Warning: Permanently added")
        ]
        prefix = "edgetl: "
        for line in error_lines:
            if line.startswith(prefix):
                return line.removeprefix(prefix)
        reason = error_lines[-1].removeprefix("ssh: ").rstrip(".") if error_lines else ""
        if status == _SSH_FAILURE_STATUS and "Permission denied" in reason:
            return f"{reason}. Set up a key without a password: `ssh-copy-id {self.address}`."
        reason = reason or "no error output"
        if status == _SSH_FAILURE_STATUS or status < 0:
            return (
                f"Connection failed or lost: {reason}. Check that `ssh {self.address} true` works."
            )
        return f"The host's process exited with status {status}: {reason}."


def _ssh_command() -> list[str]:
    text = os.environ.get(SSH_ENV_VAR, "ssh")
    try:
        command = shlex.split(text)
    except ValueError as cause:
        raise RemoteError(
            f"{SSH_ENV_VAR} must be a command, got {text!r} ({cause}). "
            "Unset it, or set it to ssh with its options."
        ) from cause
    if not command:
        raise RemoteError(f"{SSH_ENV_VAR} is empty. Unset it, or set it to ssh with its options.")
    return command
