"""A disk that fills up while a run is trained: one sentence, the last checkpoint is whole, and with room the run goes on."""

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
    """A file system of 128 MiB; where this user may not mount one, that is said."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def program(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Saving after every batch."""
    code = "import edgetl.train.engine.trainer as r; r.Trainer.save_if_due = r.Trainer.save; from edgetl.cli.app import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_a_full_disk_is_one_sentence_and_loses_nothing(
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
    # Phase 1's checkpoints fit, two at a time; those of the whole network with its optimiser do not.
    done = program(
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
    assert done.returncode == 1, done.stderr
    assert "The disk of" in done.stderr
    assert f"`edgetl finetune --resume {run.path}` goes on" in done.stderr
    assert "Traceback" not in done.stderr
    state = read_checkpoint(run.checkpoint)
    assert state.metadata["records"]
    assert not [path for path in run.path.rglob(".*safetensors*") if path.is_file()], (
        "what was begun is gone"
    )
    ballast.unlink()
    again = program("finetune", "--resume", run.path)
    assert again.returncode == 0, again.stderr
    assert len(run.history.read_text().splitlines()) == 4
    assert run.weights.stat().st_size > _MIB
