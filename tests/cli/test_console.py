"""`edgetl ... | head -3`: the reader leaves, the command does its work to the end, and its exit status is its own. With real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgetl.cli.app import COMMANDS
from edgetl.cli.bench import EXIT_LIMIT_BROKEN, EXIT_LIMIT_UNDECIDED
from edgetl.device.runtime.images import load_image
from tests.conftest import ROOT
from tests.helpers.bundles import colour_logits, colour_model, write_bundle, write_pictures


def unread(*arguments: object, folder: Path, both: bool = False) -> tuple[int, str]:
    """Exit status and standard error of a command whose standard output nobody reads; `both`: nor its standard error."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "edgetl", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdout=writing,
            stderr=writing if both else subprocess.PIPE,
            text=True,
            timeout=120,
        )
    finally:
        os.close(writing)
    return done.returncode, done.stderr or ""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    pictures = write_pictures(tmp_path / "bundle/golden")
    return write_bundle(
        tmp_path / "bundle",
        {"fp32": colour_model()},
        np.stack([colour_logits(load_image(path)) for path in pictures]),
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
def test_whatever_is_printed(arguments: list[str], tmp_path: Path) -> None:
    assert unread(*arguments, folder=tmp_path) == (0, "")


@pytest.mark.parametrize("form", ["", "--json", "--csv"])
def test_predictions(form: str, bundle: Path, tmp_path: Path) -> None:
    assert unread("predict", bundle, bundle / "golden", *filter(None, [form]), folder=tmp_path) == (
        0,
        "",
    )


def test_predictions_that_nobody_follows_any_more_are_not_made(
    bundle: Path, tmp_path: Path
) -> None:
    # The last of them would be an error.
    (tmp_path / "zz.png").write_bytes(b"no picture")
    assert unread(
        "predict", bundle, bundle / "golden", tmp_path / "zz.png", "--csv", folder=tmp_path
    ) == (0, "")


@pytest.mark.parametrize("form", ["", "--json"])
def test_a_measurement_is_kept_and_its_limits_are_judged(
    form: str, bundle: Path, tmp_path: Path
) -> None:
    options = ("--scope", "model", "--rounds", "2", "--max-p99", "1us", *filter(None, [form]))
    status, said = unread("bench", bundle, *options, folder=tmp_path)
    assert status in (EXIT_LIMIT_BROKEN, EXIT_LIMIT_UNDECIDED), "a noisy device decides nothing"
    assert "Traceback" not in said
    (path,) = (tmp_path / "bench").iterdir()
    assert unread("report", path, folder=tmp_path)[0] == 0


def test_nobody_reads_errors_either(tmp_path: Path) -> None:
    assert unread("predict", "absent", "absent.png", folder=tmp_path, both=True)[0] == 1
    assert unread("--version", folder=tmp_path, both=True)[0] == 0
