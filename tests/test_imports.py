"""Imports of all modules, and names that are looked up as strings."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

from edgetl.core import registry
from edgetl.core.runtimes import RUNTIMES

ROOT = Path(__file__).parents[1]
OPTIONAL_PACKAGES = sorted(["pnnx", *(runtime.module for runtime in RUNTIMES.values())])
"""Runtimes and converters that the environment of the tests need not have."""


def modules(package: str) -> list[str]:
    paths = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    # The clients are scripts that read the bundle next to them.
    skipped = re.compile(r"\.(__main__|client\.predict\w*)$")
    return [name.removesuffix(".__init__") for name in names if not skipped.search(name)]


def imports_at_the_top(name: str, names: set[str]) -> set[str]:
    """Return the modules of the package that a module imports when it is imported itself."""
    path = ROOT / name.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    imported: set[str] = set()
    pending: list[ast.AST] = [*ast.parse(path.read_text(encoding="utf-8")).body]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending += ast.iter_child_nodes(node)
    return imported & names


def test_modules_have_no_circular_imports() -> None:
    # Without a circle, the order of imports does not matter: one process can import all modules.
    names = set(modules("edgetl"))
    order = TopologicalSorter({name: imports_at_the_top(name, names) - {name} for name in names})
    assert set(order.static_order()) == names


def test_every_module_imports_in_a_fresh_process() -> None:
    code = f"""
for name in {modules("edgetl")!r}:
    try:
        __import__(name)
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] not in {OPTIONAL_PACKAGES!r}:
            print(name, type(error).__name__, error, flush=True)
    except BaseException as error:
        print(name, type(error).__name__, error, flush=True)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("name", modules("tools"))
def test_every_tool_imports(name: str) -> None:
    import_module(name)


@pytest.mark.parametrize(
    "table", ["ARCHITECTURE_SOURCES", "BACKENDS", "FEATURE_EXTRACTORS", "QUANTIZERS"]
)
def test_every_registry_row_resolves(table: str) -> None:
    rows = getattr(registry, table)
    for name in rows:
        assert callable(registry.load_from_registry(rows, name, "row"))


def test_every_module_run_by_name_exists() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "edgetl").rglob("*.py"))
    for name in set(re.findall(r'"-m",\s*"(edgetl[\w.]+)"', text)):
        import_module(name)
