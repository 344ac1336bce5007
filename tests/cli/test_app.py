"""Commands where the surroundings fail: no standard output, an ASCII encoding, files that may not grow. With real processes."""

from __future__ import annotations

import errno
import json
import os
import resource
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
    *arguments: object, redirect: str = "", most_bytes: int | None = None, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    def limit() -> None:
        if most_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

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
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        command, capture_output=True, env=surroundings, timeout=120, preexec_fn=limit
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    pictures = write_pictures(tmp_path / "bundle/golden")
    logits = np.stack([colour_logits(load_image(path)) for path in pictures])
    return write_bundle(tmp_path / "bundle", {"fp32": colour_model()}, logits, labels=["Bär", "猫"])


@pytest.mark.parametrize("redirect", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(bundle: Path, redirect: str) -> None:
    done = run("predict", bundle, bundle / "golden/0.png", "--json", redirect=redirect)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("command", ["predict", "verify"])
def test_an_ascii_terminal_gets_escapes(bundle: Path, command: str) -> None:
    arguments = [bundle, *([bundle / "golden/0.png"] if command == "predict" else [])]
    told = run(command, *arguments, PYTHONIOENCODING="ascii")
    assert (told.returncode, told.stderr) == (0, b"")
    assert told.stdout.isascii()
    as_json = run(command, *arguments, "--json", PYTHONIOENCODING="ascii")
    content = json.loads(as_json.stdout)
    assert (
        content == json.loads(run(command, *arguments, "--json", PYTHONIOENCODING="utf-8").stdout)
        or command == "verify"
    )


def test_a_limit_on_files_is_told(bundle: Path, tmp_path: Path) -> None:
    done = run("bench", bundle, "--rounds", "2", "-o", tmp_path / "result.json", most_bytes=1024)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert b"ulimit -f" in done.stderr


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/tmp/x"),
            "no room left on the disk (/tmp/x)",
        ),
        (
            OSError(errno.EDQUOT, "Disk quota exceeded"),
            "no room left on the disk (Disk quota exceeded)",
        ),
        (
            FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"),
            "Point TMPDIR to a folder with room",
        ),
    ],
)
def test_a_full_disk_is_told(
    error: OSError, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(asked: str) -> None:
        raise error

    monkeypatch.setattr(app, "create_app", fail)
    monkeypatch.setattr(app, "tolerate_closed_pipes", lambda: None)
    monkeypatch.setattr(app, "install_signal_handlers", lambda: None)
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 1
    assert told in " ".join(capsys.readouterr().err.split())
