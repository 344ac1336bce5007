"""Prove that the extras bring what the CUDA provider loads: python -m tools.checks.cuda_libraries [train gpu].

For each extra: a fresh virtual environment with the tested versions, edgetl's preload in it, and then every shared object that
`libonnxruntime_providers_cuda.so` needs, directly or through others, must be loaded or on the loader's path. Only `libcuda.so.1` may
be absent: it comes with the driver. Linux; about 7 GB on the disk while it runs.

`--here` does the check in the Python that runs this file and prints what is unresolved as JSON.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
FROM_THE_DRIVER = {"libcuda.so.1"}
_ABSENT = re.compile(r"^\s*(\S+) => not found", re.MULTILINE)
_NVIDIA = re.compile(r"\S+/nvidia/\S+\.so\S*$", re.MULTILINE)


def unresolved_libraries() -> list[str]:
    """Return the shared objects that the CUDA provider needs and this process could not give it, after edgetl's preload."""
    import onnxruntime

    from edgetl.device.runtime.cuda_libraries import is_loaded, preload_cuda_libraries

    preload_cuda_libraries()
    provider = Path(onnxruntime.__file__).parent / "capi/libonnxruntime_providers_cuda.so"
    # ldd follows what it finds; what is loaded from elsewhere is followed here.
    preloaded = set(_NVIDIA.findall(Path("/proc/self/maps").read_text(encoding="utf-8")))
    absent: set[str] = set()
    for library in (str(provider), *sorted(preloaded)):
        listing = subprocess.run(
            ["ldd", library], capture_output=True, text=True, check=True
        ).stdout
        absent.update(_ABSENT.findall(listing))
    return sorted(name for name in absent if not is_loaded(name))


def check_extra(extra: str) -> list[str]:
    """Return what is unresolved in a fresh environment of one of edgetl's extras, libcuda.so.1 apart."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder, "bin/python")
        versions = ["-c", str(ROOT / "constraints.txt")]
        install = [
            str(python),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-cache-dir",
            *versions,
            f"{ROOT}[{extra}]",
        ]
        subprocess.run(install, check=True)
        check = [str(python), "-I", __file__, "--here"]
        unresolved = json.loads(
            subprocess.run(check, capture_output=True, text=True, check=True).stdout
        )
    return sorted(set(unresolved) - FROM_THE_DRIVER)


def main() -> None:
    if sys.argv[1:] == ["--here"]:
        print(json.dumps(unresolved_libraries()))
        return
    if not sys.platform.startswith("linux") or shutil.which("ldd") is None:
        sys.exit("This check reads shared objects with ldd: run it on Linux.")
    failed = False
    for extra in sys.argv[1:] or ["train", "gpu"]:
        unresolved = check_extra(extra)
        failed = failed or bool(unresolved)
        print(
            f"edgetl[{extra}]: {'missing ' + ', '.join(unresolved) if unresolved else 'brings all that the CUDA provider loads'}"
        )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
