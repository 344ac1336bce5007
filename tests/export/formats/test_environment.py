"""Environments of converters: made once, offline from wheels, complete or not there."""

from __future__ import annotations

import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgetl.core.errors import ExportError
from edgetl.export.formats.environment import ConverterEnvironment

TOY = ConverterEnvironment("toy", ("edgetl-toy-converter==1.0",))


def ignore_progress(step: str, done: int, total: int) -> None:
    pass


def write_toy_wheel(folder: Path) -> Path:
    folder.mkdir()
    info = "edgetl_toy_converter-1.0.dist-info"
    files = {
        "edgetl_toy_converter.py": "VERSION = '1.0'\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: edgetl-toy-converter\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / "edgetl_toy_converter-1.0-py3-none-any.whl", "w") as wheel:
        for name, content in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(name, content)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the complete environment of TOY."""
    folder = tmp_path_factory.mktemp("cache")
    wheels = write_toy_wheel(tmp_path_factory.mktemp("source") / "wheels")
    steps: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGETL_CACHE", str(folder))
        TOY.prepare(wheels, lambda step, done, total: steps.append(step))
        assert len(steps) == 1
        assert "edgetl-toy-converter==1.0" in steps[0]
    return folder


@pytest.fixture
def ready(cache: Path, monkeypatch: pytest.MonkeyPatch) -> ConverterEnvironment:
    monkeypatch.setenv("EDGETL_CACHE", str(cache))
    return TOY


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "convert.py"
    path.write_text(
        "import sys\n"
        "import edgetl_toy_converter\n"
        "try:\n"
        "    import edgetl\n"
        "except ImportError:\n"
        "    edgetl = None\n"
        "open(sys.argv[2], 'w').write(open(sys.argv[1]).read() + edgetl_toy_converter.VERSION)\n"
        "print(edgetl)\n"
    )
    return path


def test_scripts_run_without_packages_of_edgetl(
    ready: ConverterEnvironment, script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    (tmp_path / "network").write_text("version ")
    output = ready.run(script, [tmp_path / "network", tmp_path / "converted"])
    assert (tmp_path / "converted").read_text() == "version 1.0"
    assert output.strip() == "None"


def test_complete_environments_are_not_made_again(
    ready: ConverterEnvironment, tmp_path: Path
) -> None:
    def refuse(step: str, done: int, total: int) -> None:
        raise AssertionError(step)

    assert ready.is_complete
    ready.prepare(tmp_path / "no wheels", refuse)


def test_other_requirements_have_another_folder(ready: ConverterEnvironment) -> None:
    other = ConverterEnvironment("toy", ("edgetl-toy-converter==2.0",))
    assert other.folder != ready.folder
    assert not other.is_complete


def test_failing_scripts_are_reported_with_their_last_line(
    ready: ConverterEnvironment, script: Path
) -> None:
    with pytest.raises(ExportError, match="toy converter ended with code 1: IndexError"):
        ready.run(script, [])


def test_failed_installations_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "wheels").mkdir()
    with pytest.raises(ExportError, match=r"pip failed \(No matching distribution.*pip download"):
        TOY.prepare(tmp_path / "wheels", ignore_progress)
    assert not TOY.folder.exists()
    assert not TOY.is_complete


def test_simultaneous_calls_replace_half_an_environment_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "cache"))
    wheels = write_toy_wheel(tmp_path / "wheels")
    TOY.python.parent.mkdir(parents=True)
    TOY.python.write_text("half a file")
    assert not TOY.is_complete
    steps: list[str] = []
    with ThreadPoolExecutor(3) as pool:
        for preparation in [
            pool.submit(TOY.prepare, wheels, lambda step, done, total: steps.append(step))
            for _ in range(3)
        ]:
            preparation.result()
    assert len(steps) == 1
    assert TOY.is_complete


def test_unwritable_caches_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "file"))
    with pytest.raises(ExportError, match=r"set \$EDGETL_CACHE"):
        TOY.prepare(None, ignore_progress)
