"""Imports of all modules, and names that are looked up as strings."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from edgetl.core import registry

ROOT = Path(__file__).parents[1]


def modules(package: str) -> list[str]:
    paths = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    # The bundle's client is a script that reads the bundle next to it.
    skipped = ("__main__", "client.predict")
    return [name.removesuffix(".__init__") for name in names if not name.endswith(skipped)]


def test_every_module_imports_in_a_fresh_process() -> None:
    # A shared process would hide circular imports, and starting one per module would take minutes.
    code = f"""
import os, sys
for name in {modules("edgetl")!r}:
    child = os.fork()
    if child == 0:
        try:
            __import__(name)
        except BaseException as error:
            print(name, type(error).__name__, error, flush=True)
            os._exit(1)
        os._exit(0)
    os.waitpid(child, 0)
"""
    # Import common dependencies once, before the forks.
    dependencies = (
        "import numpy, PIL.Image, onnxruntime, torch, torchvision, onnx, albumentations\n"
        "import matplotlib, typer\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", dependencies + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("name", modules("tools"))
def test_every_tool_imports(name: str) -> None:
    import_module(name)


@pytest.mark.parametrize("table", ["BACKENDS", "FEATURE_EXTRACTORS", "QUANTIZERS"])
def test_every_registry_row_resolves(table: str) -> None:
    rows = getattr(registry, table)
    for name in rows:
        assert callable(registry.load_from_registry(rows, name, "row"))


def test_every_module_run_by_name_exists() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "edgetl").rglob("*.py"))
    for name in set(re.findall(r'"-m",\s*"(edgetl[\w.]+)"', text)):
        import_module(name)
