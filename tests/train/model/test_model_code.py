"""The recorded code of a model: which files belong to it, and how a later process finds them."""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgetl.core.artifacts.run_config import ModelCode
from edgetl.core.errors import ArchitectureError, RunError
from edgetl.core.files import sha256_file
from edgetl.core.typed_json import parse_as, to_json
from edgetl.train.model.model_code import import_module, record_code, restore_code

_numbers = itertools.count()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Folder of the user's code, the current one; what tests import from it is forgotten."""
    path = tmp_path / "project"
    path.mkdir()
    monkeypatch.chdir(path)
    search_path = list(sys.path)
    yield path
    sys.path[:] = search_path
    forget(tmp_path)


def forget(folder: Path) -> None:
    """Remove the modules of a folder, as in a new process."""
    sys.path[:] = [path for path in sys.path if not Path(path).is_relative_to(folder)]
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and Path(file).is_relative_to(folder):
            del sys.modules[name]


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


PACKAGE = {
    "nets/__init__.py": "from nets.version import VERSION",
    "nets/version.py": "VERSION = 1",
    "nets/edge/__init__.py": "",
    "nets/edge/model.py": "from . import blocks\nfrom ..layers import WIDTH\nimport shapes, json\n"
    "def build(classes):\n    from nets.late import late\n",
    "nets/edge/blocks.py": "from importlib import import_module",
    "nets/layers.py": "WIDTH = 8",
    "nets/late.py": "def late(): pass",
    "nets/unused.py": "",
    "shapes.py": "SIDE = 3",
    "training.py": "",
}


def test_record_has_the_imported_files_of_the_folder(folder: Path) -> None:
    write(folder, PACKAGE)
    import_module("training")
    import_module("nets.unused")
    code = record_code("nets.edge.model:build")
    assert code is not None
    assert code.root == folder.resolve()
    assert code.module == "nets.edge.model"
    assert list(code.files) == [
        "nets/__init__.py",
        "nets/edge/__init__.py",
        "nets/edge/blocks.py",
        "nets/edge/model.py",
        "nets/layers.py",
        "nets/version.py",
        "shapes.py",
    ], "neither the unrelated modules nor those that were not imported yet"
    assert code.files["shapes.py"] == sha256_file(folder / "shapes.py")
    import_module("nets.late")
    late = record_code("nets.edge.model:build")
    assert late is not None
    assert set(late.files) - set(code.files) == {"nets/late.py"}


def test_record_leaves_out_installed_packages(folder: Path) -> None:
    packages = folder / ".venv/lib/site-packages"
    write(packages, {"installed_a/__init__.py": "import installed_b", "installed_b.py": ""})
    write(folder, {"net_a.py": "import installed_a, edgetl, torch"})
    sys.path.insert(0, str(packages))
    code = record_code("net_a:build")
    assert code is not None
    assert list(code.files) == ["net_a.py"]
    # A model that is installed itself consists of the files of its own package.
    installed = record_code("installed_a:build")
    assert installed is not None
    assert installed.root == packages.resolve()
    assert list(installed.files) == ["installed_a/__init__.py"]


def test_stock_architectures_have_no_code() -> None:
    assert record_code("mobilenet_v2") is None


def test_module_without_file_is_an_error() -> None:
    with pytest.raises(ArchitectureError, match=r"sys has no file\. Put the model in a"):
        record_code("sys:exit")


@pytest.fixture
def code(folder: Path) -> ModelCode:
    """Recorded code of two files, which no process has imported."""
    names = [f"{name}_{next(_numbers)}" for name in ("net", "layers")]
    write(folder, {f"{names[0]}.py": f"import {names[1]}", f"{names[1]}.py": "WIDTH = 8"})
    recorded = record_code(f"{names[0]}:build")
    assert recorded is not None
    assert len(recorded.files) == 2
    forget(folder)
    return recorded


def test_code_is_found_from_another_folder(
    code: ModelCode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    restore_code(code)
    file = sys.modules[code.module].__file__
    assert file is not None
    assert Path(file).parent == code.root
    restore_code(code)


def test_code_in_the_current_folder_replaces_lost_code(
    code: ModelCode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.move(code.root, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    missing = code.root / next(iter(code.files))
    with pytest.raises(
        RunError,
        match=rf"code of the model is gone: {missing} does not exist\. Restore it, run the command",
    ):
        restore_code(code)
    monkeypatch.chdir(tmp_path / "moved")
    restore_code(code)


def test_changed_code_is_an_error(code: ModelCode) -> None:
    names = list(code.files)
    for name in names:
        text = (code.root / name).read_text(encoding="utf-8")
        (code.root / name).write_text(f"{text}\n", encoding="utf-8")
    with pytest.raises(
        RunError,
        match=f"changed after training: {names[0]}, {names[1]}. Restore it, or run finetune again.",
    ):
        restore_code(code)
    assert code.module not in sys.modules, "changed code is not run"


def test_another_module_of_the_name_is_an_error(
    code: ModelCode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(code.root, tmp_path / "other")
    restore_code(replace(code, root=tmp_path / "other"))
    with pytest.raises(RunError, match=r"this process has imported it from .* Use a new"):
        restore_code(code)


def test_code_round_trips_through_config_json(code: ModelCode) -> None:
    assert parse_as(ModelCode, to_json(code)) == code
