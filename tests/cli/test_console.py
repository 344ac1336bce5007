"""Commands whose pipe is closed by the reader (`edgetl ... | head -3`), in real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgetl.cli.app import COMMANDS
from edgetl.cli.exit_codes import ExitCode
from edgetl.device.runtime.images import load_image
from tests.conftest import ROOT
from tests.helpers.bundles import colour_logits, colour_model, write_bundle, write_pictures


def run_with_closed_pipe(
    *arguments: object, folder: Path, close_stderr: bool = False
) -> tuple[int, str]:
    """Run a command with a closed standard output, and standard error if `close_stderr` is set."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "edgetl", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        process = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdout=write_end,
            stderr=write_end if close_stderr else subprocess.PIPE,
            text=True,
            timeout=120,
        )
    finally:
        os.close(write_end)
    return process.returncode, process.stderr or ""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    images = write_pictures(tmp_path / "bundle/golden")
    return write_bundle(
        tmp_path / "bundle",
        {"fp32": colour_model()},
        np.stack([colour_logits(load_image(path)) for path in images]),
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--version"],
        *[[command, "--help"] for command in COMMANDS],
        ["models"],
        ["models", "--json"],
        ["presets"],
        ["presets", "--json"],
        ["doctor", "--json"],
    ],
    ids=" ".join,
)
def test_commands_succeed_when_stdout_is_closed(arguments: list[str], tmp_path: Path) -> None:
    assert run_with_closed_pipe(*arguments, folder=tmp_path) == (0, "")


@pytest.mark.parametrize("form", ["", "--json", "--csv"])
def test_predict_succeeds_when_stdout_is_closed(form: str, bundle: Path, tmp_path: Path) -> None:
    assert run_with_closed_pipe(
        "predict", bundle, bundle / "golden", *filter(None, [form]), folder=tmp_path
    ) == (
        0,
        "",
    )


def test_predict_csv_stops_when_stdout_is_closed(bundle: Path, tmp_path: Path) -> None:
    # The last file would be an error if it were read.
    (tmp_path / "zz.png").write_bytes(b"no picture")
    assert run_with_closed_pipe(
        "predict", bundle, bundle / "golden", tmp_path / "zz.png", "--csv", folder=tmp_path
    ) == (0, "")


@pytest.mark.parametrize("form", ["", pytest.param("--json", marks=pytest.mark.slow)])
def test_bench_saves_result_when_stdout_is_closed(form: str, bundle: Path, tmp_path: Path) -> None:
    options = ("--scope", "model", "--rounds", "2", "--max-p99", "1us", *filter(None, [form]))
    status, stderr = run_with_closed_pipe("bench", bundle, *options, folder=tmp_path)
    assert status in (ExitCode.FAILED_CHECK, ExitCode.UNDECIDED), "undecided on a noisy device"
    assert "Traceback" not in stderr
    (path,) = (tmp_path / "bench").iterdir()
    assert run_with_closed_pipe("report", path, folder=tmp_path)[0] == 0


def test_exit_status_is_kept_when_stderr_is_closed(tmp_path: Path) -> None:
    assert (
        run_with_closed_pipe("predict", "absent", "absent.png", folder=tmp_path, close_stderr=True)[
            0
        ]
        == 1
    )
    assert run_with_closed_pipe("--version", folder=tmp_path, close_stderr=True)[0] == 0
