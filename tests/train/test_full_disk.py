"""A full disk during training: one message, an intact checkpoint, and a run that can resume."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgetl.core.paths import RunDirectory
from edgetl.train.engine.checkpoint import read_checkpoint
from tests.conftest import ARCHITECTURE, IMAGE_SIZE, ROOT

_MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """File system of 128 MiB; skips the test if this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    if mount.returncode != 0:
        pytest.skip(f"cannot mount a small disk: {mount.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def run_edgetl(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run edgetl with a checkpoint after every batch."""
    code = (
        "import edgetl.train.engine.trainer as r; r.Trainer.save_if_due = r.Trainer.save_checkpoint; "
        "from edgetl.cli.app import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.slow
def test_full_disk_keeps_checkpoint_and_run_can_resume(
    disk: Path, parts: Path, random_weights: Path
) -> None:
    run, ballast = RunDirectory(disk / "run"), disk / "ballast"
    options = (
        "--model",
        ARCHITECTURE,
        "--weights",
        random_weights,
        "--image-size",
        IMAGE_SIZE,
        "--device",
        "cpu",
        "--workers",
        0,
    )
    ballast.write_bytes(bytes(82 * _MIB))
    # Two checkpoints of phase 1 fit; those of the complete model with its optimizer do not.
    result = run_edgetl(
        "finetune",
        parts,
        "-o",
        run.path,
        *options,
        "--epochs",
        2,
        "--finetune-epochs",
        2,
        "--unfreeze",
        "all",
    )
    assert result.returncode == 1, result.stderr
    assert "The disk of" in result.stderr
    assert f"`edgetl finetune --resume {run.path}`" in result.stderr
    assert "Traceback" not in result.stderr
    checkpoint = read_checkpoint(run.checkpoint)
    assert checkpoint.facts["records"]
    assert not [path for path in run.path.rglob(".*safetensors*") if path.is_file()], (
        "incomplete files must be removed"
    )
    ballast.unlink()
    resumed = run_edgetl("finetune", "--resume", run.path)
    assert resumed.returncode == 0, resumed.stderr
    assert len(run.history.read_text().splitlines()) == 4
    assert run.weights.stat().st_size > _MIB
