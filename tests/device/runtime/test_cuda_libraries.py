"""What the CUDA provider loads: found after the preload, in silence, from wherever the wheels lie."""

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
LIBRARIES_OF_CUDA = re.compile(r"libcu(?:blas|dart|dnn|rand|fft)|libnvrtc")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="by the loader of Linux")


def run_python(program: str, **variables: str) -> str:
    """Run a program in a fresh interpreter; return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


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
def test_everything_that_the_provider_needs_is_found() -> None:
    """If this fails after an update of constraints.txt: install edgetl's `train` extra again."""
    program = f"import json; from {unresolved_libraries.__module__} import *; print(json.dumps(unresolved_libraries()))"
    assert set(json.loads(run_python(program))) <= FROM_THE_DRIVER


@linux
def test_a_session_on_the_cpu_loads_no_cuda(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(_colour_model())
    program = (
        "from pathlib import Path; from edgetl.device.runtime.session import create_session; "
        f"create_session(Path({str(tmp_path / 'model.onnx')!r})); print(Path('/proc/self/maps').read_text())"
    )
    assert not LIBRARIES_OF_CUDA.search(run_python(program))


@linux
def test_the_preload_prints_nothing() -> None:
    program = "from edgetl.device.runtime.cuda_libraries import *; preload_cuda_libraries(); preload_cuda_libraries()"
    assert run_python(program) == ""


_ELSEWHERE = """
import sys, types
from pathlib import Path
sys.path[:] = [entry for entry in sys.path if "site-packages" not in entry] + [{site!r}]
sys.modules["onnxruntime"] = types.SimpleNamespace(cuda_version="13.0")
from edgetl.device.runtime.cuda_libraries import preload_cuda_libraries
preload_cuda_libraries()
print(Path("/proc/self/maps").read_text())
"""


def stand_in(folder: Path) -> Path:
    """A loadable library by the name of cuRAND's."""
    folder.mkdir(parents=True)
    loaded = (line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines())
    return Path(
        shutil.copy(
            next(path for path in loaded if "/libm.so" in path or "/libm-" in path),
            folder / "libcurand.so.10",
        )
    )


@linux
def test_libraries_are_found_in_wheels_elsewhere_on_the_path(tmp_path: Path) -> None:
    """As after `pip install --target`, with an onnxruntime that has no preload of its own."""
    library = stand_in(tmp_path / "site/nvidia/cu13/lib")
    assert str(library) in run_python(_ELSEWHERE.format(site=str(tmp_path / "site")))


@linux
def test_the_loaders_path_comes_before_wheels(tmp_path: Path) -> None:
    stand_in(tmp_path / "site/nvidia/cu13/lib")
    chosen = stand_in(tmp_path / "chosen")
    maps = run_python(
        _ELSEWHERE.format(site=str(tmp_path / "site")), LD_LIBRARY_PATH=str(chosen.parent)
    )
    assert str(chosen) in maps


def test_an_onnxruntime_without_cuda_loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fake = SimpleNamespace(cuda_version="", preload_dlls=lambda: calls.append("preload"))
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    monkeypatch.setattr(cuda_libraries, "_load_from", lambda soname, folders: calls.append(soname))
    cuda_libraries._preload.__wrapped__()
    assert calls == []


def test_the_words_of_the_loader_name_the_library() -> None:
    words = (
        "2026 [E:onnxruntime] FAIL : Failed to load library /v/onnxruntime/capi/libonnxruntime_providers_cuda.so with error: "
        "libcurand.so.10: cannot open shared object file: No such file or directory"
    )
    assert find_missing_library(words) == "libcurand.so.10"
    assert (
        find_missing_library("libonnxruntime_providers_cuda.so: undefined symbol: Provider_GetHost")
        is None
    )
    assert find_missing_library("CUDA failure 100: no CUDA-capable device is detected") is None


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Installed packages and their versions."""
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
def test_a_missing_library_is_added_with_its_siblings(
    packages: dict[str, str], library: str
) -> None:
    assert (
        suggest_remedy(f"{library} is missing")
        == 'pip install "onnxruntime-gpu[cuda,cudnn]==1.31.1"'
    )


def test_a_package_that_lost_its_files_is_installed_again(packages: dict[str, str]) -> None:
    packages["nvidia-curand"] = "10.4.2.66"
    assert suggest_remedy("libcurand.so.10 is missing").startswith(
        'pip install --force-reinstall --no-deps "nvidia-curand==10.4.2.66"'
    )
    packages["nvidia-cudnn-cu13"] = "9.26.0.51"
    assert '"nvidia-cudnn-cu13==9.26.0.51"' in suggest_remedy("libcudnn.so.9 is missing")


@pytest.mark.usefixtures("packages")
def test_the_drivers_library_comes_with_the_driver() -> None:
    for problem in (
        "libcuda.so.1 is missing",
        "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version",
    ):
        assert "driver" in suggest_remedy(problem)
        assert "pip" not in suggest_remedy(problem)


@pytest.mark.usefixtures("packages")
def test_tensorrt_is_of_the_version_that_the_provider_links_to() -> None:
    assert suggest_remedy("libnvinfer.so.10 is missing") == 'pip install "tensorrt-cu13==10.*"'


@pytest.mark.usefixtures("packages")
def test_an_unknown_library_is_not_guessed() -> None:
    assert "libfoo.so.3" in suggest_remedy("libfoo.so.3 is missing")
    assert "pip" not in suggest_remedy("libfoo.so.3 is missing")


def _colour_model() -> bytes:
    from tests.helpers.bundles import colour_model

    content: bytes = colour_model().SerializeToString()
    return content
