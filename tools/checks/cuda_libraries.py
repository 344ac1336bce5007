"""Check that the extras install all libraries of the CUDA provider.

    python -m tools.checks.cuda_libraries [train gpu]

For each extra, a new virtual environment with the tested versions is created and edgetl's preload
is run in it. Then every shared object that `libonnxruntime_providers_cuda.so` needs, directly or
indirectly, must be loaded or on the loader's path. Only `libcuda.so.1` may be missing, since the
driver provides it. Requires Linux and about 7 GB of temporary disk space.

`--here` checks the current Python environment and prints the unresolved libraries as JSON.
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
DRIVER_LIBRARIES = {"libcuda.so.1"}
_NOT_FOUND = re.compile(r"^\s*(\S+) => not found", re.MULTILINE)
_NVIDIA_LIBRARY = re.compile(r"\S+/nvidia/\S+\.so\S*$", re.MULTILINE)


def unresolved_libraries() -> list[str]:
    """Run edgetl's preload and return the libraries that the CUDA provider would not find."""
    import onnxruntime

    from edgetl.device.runtime.cuda_libraries import is_loaded, preload_cuda_libraries

    preload_cuda_libraries()
    provider = Path(onnxruntime.__file__).parent / "capi/libonnxruntime_providers_cuda.so"
    # ldd only follows libraries on the loader's path, so check the preloaded ones as well.
    preloaded = set(_NVIDIA_LIBRARY.findall(Path("/proc/self/maps").read_text(encoding="utf-8")))
    missing: set[str] = set()
    for library in (str(provider), *sorted(preloaded)):
        listing = subprocess.run(
            ["ldd", library], capture_output=True, text=True, check=True
        ).stdout
        missing.update(_NOT_FOUND.findall(listing))
    return sorted(name for name in missing if not is_loaded(name))


def check_extra(extra: str) -> list[str]:
    """Return the unresolved libraries in a new environment with an extra, except the driver's."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder, "bin/python")
        versions = ["-c", str(ROOT / "constraints.txt")]
        install = [str(python), "-m", "pip", "install", "--quiet", "--no-cache-dir"]
        subprocess.run([*install, *versions, f"{ROOT}[{extra}]"], check=True)
        check = [str(python), "-I", __file__, "--here"]
        output = subprocess.run(check, capture_output=True, text=True, check=True).stdout
        unresolved = json.loads(output)
    return sorted(set(unresolved) - DRIVER_LIBRARIES)


def main() -> None:
    if sys.argv[1:] == ["--here"]:
        print(json.dumps(unresolved_libraries()))
        return
    if not sys.platform.startswith("linux") or shutil.which("ldd") is None:
        sys.exit("ldd not found. Run this check on Linux.")
    failed = False
    for extra in sys.argv[1:] or ["train", "gpu"]:
        unresolved = check_extra(extra)
        failed = failed or bool(unresolved)
        if unresolved:
            print(f"edgetl[{extra}]: missing {', '.join(unresolved)}")
        else:
            print(f"edgetl[{extra}]: installs all libraries of the CUDA provider")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
