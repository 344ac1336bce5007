"""Installation of missing packages from a folder of wheels, for the steps only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def install_wheels(wheels: Path, target: Path) -> Path:
    """Install every wheel of a folder into `target`, without an index and without dependencies.

    `target` comes first on the steps' path, so that a wheel of onnxruntime-gpu hides an installed
    onnxruntime, whose module has the same name.

    Raises:
        SystemExit: the folder contains no wheel, or pip fails.
    """
    files = sorted(wheels.glob("*.whl"))
    if not files:
        sys.exit(f"--wheels {wheels}: no .whl file found.")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    options = ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--target", str(target)]
    process = subprocess.run([*pip, *options, *map(str, files)], capture_output=True, text=True)
    if process.returncode:
        sys.exit(f"--wheels {wheels}: pip cannot install them.\n{process.stderr.strip()}")
    return target


def step_variables(scratch: Path, site: Path | None) -> dict[str, str]:
    """Return the environment of the steps' processes.

    Args:
        scratch: folder for edgetl's cache, so that the user's cache is neither used nor filled.
        site: folder of packages that take precedence over the installed ones.
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
        # onnxruntime.preload_dlls() searches next to onnxruntime, which is now in `site`, while the
        # libraries are next to PyTorch.
        library_path = filter(None, [os.environ.get("LD_LIBRARY_PATH")])
        variables["LD_LIBRARY_PATH"] = os.pathsep.join([*libraries, *library_path])
    return variables


def nvidia_libraries() -> list[str]:
    """Return the library folders of the installed NVIDIA wheels."""
    folders = [folder for entry in sys.path for folder in Path(entry or ".").glob("nvidia/*/lib")]
    return sorted({str(folder) for folder in folders if folder.is_dir()})
