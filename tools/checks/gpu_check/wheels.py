"""Packages that the machine lacks, installed for the steps alone from wheels in a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def install_wheels(wheels: Path, target: Path) -> Path:
    """Install every wheel of a folder into `target`, without an index and without dependencies.

    `target` goes to the front of the path of the steps, so that a wheel of onnxruntime-gpu hides
    an installed onnxruntime, whose module has the same name.

    Raises:
        SystemExit: no wheels, or pip refuses one.
    """
    files = sorted(wheels.glob("*.whl"))
    if not files:
        sys.exit(f"--wheels {wheels}: there is no .whl file.")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    alone = ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--target", str(target)]
    done = subprocess.run([*pip, *alone, *map(str, files)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"--wheels {wheels}: pip could not install them.\n{done.stderr.strip()}")
    return target


def step_variables(scratch: Path, site: Path | None) -> dict[str, str]:
    """The environment of the steps' processes.

    Args:
        scratch: a folder for edgetl's cache, so that the user's own is neither used nor filled.
        site: packages that go before the installed ones.
    """
    path = [str(site)] if site else []
    path += [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONUNBUFFERED": "1",
        "EDGETL_CACHE": str(scratch / "cache"),
    }
    libraries = nvidia_libraries() if site else []
    if libraries:
        # onnxruntime.preload_dlls() searches the folder that holds onnxruntime, which is `site` now,
        # and the libraries lie beside PyTorch.
        before = filter(None, [os.environ.get("LD_LIBRARY_PATH")])
        variables["LD_LIBRARY_PATH"] = os.pathsep.join([*libraries, *before])
    return variables


def nvidia_libraries() -> list[str]:
    """Library folders of NVIDIA's wheels among this interpreter's packages."""
    folders = [folder for entry in sys.path for folder in Path(entry or ".").glob("nvidia/*/lib")]
    return sorted({str(folder) for folder in folders if folder.is_dir()})
