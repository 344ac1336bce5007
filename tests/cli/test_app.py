"""Commands with closed streams, an ASCII encoding or limited storage, in real processes."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgetl.cli import app
from edgetl.device.runtime.images import load_image
from tests.conftest import ROOT
from tests.helpers.bundles import colour_logits, colour_model, write_bundle, write_pictures


def run(
    *arguments: object, redirect: str = "", max_file_bytes: int | None = None, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    def limit() -> None:
        if max_file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))

    command = [
        "sh",
        "-c",
        f'exec "$@" {redirect}',
        "sh",
        sys.executable,
        "-m",
        "edgetl",
        *map(str, arguments),
    ]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        command, capture_output=True, env=variables, timeout=120, preexec_fn=limit
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    images = write_pictures(tmp_path / "bundle/golden")
    logits = np.stack([colour_logits(load_image(path)) for path in images])
    return write_bundle(tmp_path / "bundle", {"fp32": colour_model()}, logits, labels=["Bär", "猫"])


@pytest.mark.parametrize("redirect", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_not_an_error(bundle: Path, redirect: str) -> None:
    process = run("predict", bundle, bundle / "golden/0.png", "--json", redirect=redirect)
    assert (process.returncode, process.stderr) == (0, b"")


@pytest.mark.parametrize("command", ["predict", "verify"])
def test_output_is_escaped_on_ascii_terminal(bundle: Path, command: str) -> None:
    arguments = [bundle, *([bundle / "golden/0.png"] if command == "predict" else [])]
    plain = run(command, *arguments, PYTHONIOENCODING="ascii")
    assert (plain.returncode, plain.stderr) == (0, b"")
    assert plain.stdout.isascii()
    as_json = run(command, *arguments, "--json", PYTHONIOENCODING="ascii")
    content = json.loads(as_json.stdout)
    assert (
        content == json.loads(run(command, *arguments, "--json", PYTHONIOENCODING="utf-8").stdout)
        or command == "verify"
    )


def test_file_size_limit_is_reported(bundle: Path, tmp_path: Path) -> None:
    process = run(
        "bench", bundle, "--rounds", "2", "-o", tmp_path / "result.json", max_file_bytes=1024
    )
    assert process.returncode == 1
    assert b"Traceback" not in process.stderr
    assert b"ulimit -f" in process.stderr


def test_illegal_instruction_is_reported() -> None:
    code = (
        "import signal\nfrom edgetl.cli import app\n"
        "app.create_app = lambda command: signal.raise_signal(signal.SIGILL)\napp.main()"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.returncode == -signal.SIGILL
    assert b"Illegal instruction" in process.stderr
    assert b"in main" in process.stderr, "the stack is missing"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/tmp/x"),
            "No space left on the disk (/tmp/x)",
        ),
        (
            OSError(errno.EDQUOT, "Disk quota exceeded"),
            "No space left on the disk (Disk quota exceeded)",
        ),
        (
            FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"),
            "Set TMPDIR to a folder with free space",
        ),
    ],
)
def test_full_disk_is_reported(
    error: OSError,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(command: str) -> None:
        raise error

    monkeypatch.setattr(app, "create_app", fail)
    monkeypatch.setattr(app, "tolerate_closed_pipes", lambda: None)
    monkeypatch.setattr(app, "install_signal_handlers", lambda: None)
    with pytest.raises(SystemExit) as exit_info:
        app.main()
    assert exit_info.value.code == 1
    assert message in " ".join(capsys.readouterr().err.split())
