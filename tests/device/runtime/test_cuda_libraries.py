"""Preloading of CUDA's libraries, and the remedies for missing ones."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgetl.device.runtime import cuda_libraries
from edgetl.device.runtime.cuda_libraries import find_missing_library, suggest_remedy
from tools.checks.cuda_libraries import FROM_THE_DRIVER, unresolved_libraries

ROOT = Path(__file__).parents[3]
CUDA_LIBRARY_PATTERN = re.compile(r"libcu(?:blas|dart|dnn|rand|fft)|libnvrtc")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs the Linux loader")


def run_python(script: str, **variables: str) -> str:
    """Run a script in a new interpreter and return its output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    process = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def has_gpu_wheel() -> bool:
    try:
        metadata.version("onnxruntime-gpu")
    except metadata.PackageNotFoundError:
        return False
    return True


@linux
@pytest.mark.skipif(
    not has_gpu_wheel() or shutil.which("ldd") is None, reason="needs onnxruntime-gpu and ldd"
)
def test_preload_resolves_all_provider_libraries() -> None:
    """If this fails after an update of constraints.txt, reinstall edgetl's `train` extra."""
    module = unresolved_libraries.__module__
    script = f"import json; from {module} import *; print(json.dumps(unresolved_libraries()))"
    assert set(json.loads(run_python(script))) <= FROM_THE_DRIVER


@linux
def test_cpu_session_loads_no_cuda_libraries(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(_color_model_bytes())
    script = (
        "from pathlib import Path; from edgetl.device.runtime.session import create_session; "
        f"create_session(Path({str(tmp_path / 'model.onnx')!r})); "
        "print(Path('/proc/self/maps').read_text())"
    )
    assert not CUDA_LIBRARY_PATTERN.search(run_python(script))


@linux
def test_preload_prints_nothing() -> None:
    script = (
        "from edgetl.device.runtime.cuda_libraries import *; "
        "preload_cuda_libraries(); preload_cuda_libraries()"
    )
    assert run_python(script) == ""


_PRELOAD_FROM_SITE_SCRIPT = """
import sys, types
from pathlib import Path
sys.path[:] = [entry for entry in sys.path if "site-packages" not in entry] + [{site!r}]
sys.modules["onnxruntime"] = types.SimpleNamespace(cuda_version="13.0")
from edgetl.device.runtime.cuda_libraries import preload_cuda_libraries
preload_cuda_libraries()
print(Path("/proc/self/maps").read_text())
"""


def write_fake_curand(folder: Path) -> Path:
    """Write a loadable library with cuRAND's name."""
    folder.mkdir(parents=True)
    paths = (line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines())
    libm = next(path for path in paths if "/libm.so" in path or "/libm-" in path)
    return Path(shutil.copy(libm, folder / "libcurand.so.10"))


@linux
def test_preload_finds_wheels_on_sys_path(tmp_path: Path) -> None:
    """Same layout as after `pip install --target`, with an onnxruntime without `preload_dlls`."""
    library = write_fake_curand(tmp_path / "site/nvidia/cu13/lib")
    script = _PRELOAD_FROM_SITE_SCRIPT.format(site=str(tmp_path / "site"))
    assert str(library) in run_python(script)


@linux
def test_preload_prefers_ld_library_path_to_wheels(tmp_path: Path) -> None:
    write_fake_curand(tmp_path / "site/nvidia/cu13/lib")
    preferred = write_fake_curand(tmp_path / "preferred")
    script = _PRELOAD_FROM_SITE_SCRIPT.format(site=str(tmp_path / "site"))
    maps = run_python(script, LD_LIBRARY_PATH=str(preferred.parent))
    assert str(preferred) in maps


def test_preload_does_nothing_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fake = SimpleNamespace(cuda_version="", preload_dlls=lambda: calls.append("preload"))
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    monkeypatch.setattr(cuda_libraries, "_load_from", lambda soname, folders: calls.append(soname))
    cuda_libraries._preload.__wrapped__()
    assert calls == []


def test_find_missing_library_in_loader_message() -> None:
    message = (
        "2026 [E:onnxruntime] FAIL : Failed to load library "
        "/v/onnxruntime/capi/libonnxruntime_providers_cuda.so with error: "
        "libcurand.so.10: cannot open shared object file: No such file or directory"
    )
    assert find_missing_library(message) == "libcurand.so.10"
    assert (
        find_missing_library("libonnxruntime_providers_cuda.so: undefined symbol: Provider_GetHost")
        is None
    )
    assert find_missing_library("CUDA failure 100: no CUDA-capable device is detected") is None


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return the fake installed packages and their versions."""
    versions = {"onnxruntime-gpu": "1.31.1"}
    monkeypatch.setattr(cuda_libraries, "_installed_version", versions.get)
    monkeypatch.setattr(
        cuda_libraries.metadata,
        "requires",
        lambda name: ['nvidia-cudnn-cu13~=9.0; extra == "cudnn"'],
    )
    return versions


@pytest.mark.parametrize(
    "library",
    ["libcurand.so.10", "libcublasLt.so.13", "libcudart.so.13", "libcudnn.so.9", "libcufft.so.12"],
)
def test_remedy_installs_all_cuda_libraries(packages: dict[str, str], library: str) -> None:
    assert (
        suggest_remedy(f"{library} is missing")
        == 'pip install "onnxruntime-gpu[cuda,cudnn]==1.31.1"'
    )


def test_remedy_reinstalls_package_with_missing_files(packages: dict[str, str]) -> None:
    packages["nvidia-curand"] = "10.4.2.66"
    assert suggest_remedy("libcurand.so.10 is missing").startswith(
        'pip install --force-reinstall --no-deps "nvidia-curand==10.4.2.66"'
    )
    packages["nvidia-cudnn-cu13"] = "9.26.0.51"
    assert '"nvidia-cudnn-cu13==9.26.0.51"' in suggest_remedy("libcudnn.so.9 is missing")


@pytest.mark.usefixtures("packages")
def test_remedy_for_driver_problem_is_the_driver() -> None:
    for problem in (
        "libcuda.so.1 is missing",
        "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version",
    ):
        assert "driver" in suggest_remedy(problem)
        assert "pip" not in suggest_remedy(problem)


@pytest.mark.usefixtures("packages")
def test_remedy_pins_required_tensorrt_version() -> None:
    assert suggest_remedy("libnvinfer.so.10 is missing") == 'pip install "tensorrt-cu13==10.*"'


@pytest.mark.usefixtures("packages")
def test_remedy_for_unknown_library_names_no_package() -> None:
    assert "libfoo.so.3" in suggest_remedy("libfoo.so.3 is missing")
    assert "pip" not in suggest_remedy("libfoo.so.3 is missing")


def _color_model_bytes() -> bytes:
    from tests.helpers.bundles import colour_model

    content: bytes = colour_model().SerializeToString()
    return content
