"""Python code of a model of one's own: import it, record its files, and find them again later.

A run records the files that its model was built from. Export, benchmarks and `--resume` run in other
processes and other folders, import the same files, and refuse changed ones.
"""

from __future__ import annotations

import ast
import importlib
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import edgetl
from edgetl.core.architectures import source_of
from edgetl.core.artifacts.run_config import ModelCode
from edgetl.core.config.model_names import get_main_module_name
from edgetl.core.errors import ArchitectureError, RunError
from edgetl.core.files import sha256_file

_PACKAGE = Path(edgetl.__file__).resolve().parent
_STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib")).resolve()
_INSTALLED = {"site-packages", "dist-packages"}


def import_module(name: str) -> ModuleType:
    """Import a module of the user from the current folder or Python's search path.

    Raises:
        ArchitectureError: there is no such module, or importing it raised an error.
    """
    # As `python -m` does.
    if not sys.flags.safe_path and not {"", str(Path.cwd())} & set(sys.path):
        sys.path.insert(0, str(Path.cwd()))
    return _import_from_search_path(name)


def _import_from_search_path(name: str) -> ModuleType:
    module = _find_imported(name)
    if module is not None:
        return module
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as cause:
        if cause.name is None or not f"{name}.".startswith(f"{cause.name}."):
            raise user_error(f"Importing {name}", cause) from cause
        raise ArchitectureError(
            f"There is no module {cause.name} in {Path.cwd()} or on Python's search path. "
            f"Run the command in the folder of {name.partition('.')[0]}, or add that folder to "
            "PYTHONPATH.",
        ) from cause
    except Exception as cause:
        raise user_error(f"Importing {name}", cause) from cause


def user_error(what: str, cause: Exception) -> ArchitectureError:
    """Return the error about an exception in the user's code, with its file and line."""
    text = str(cause).strip()
    if isinstance(cause, SyntaxError):
        text = cause.msg
    message = f"{type(cause).__name__}: {text}" if text else type(cause).__name__
    return ArchitectureError(f"{what} failed{_describe_location(cause)}: {message}")


def _describe_location(cause: Exception) -> str:
    if isinstance(cause, SyntaxError):
        return f" at {_relative_to_cwd(Path(cause.filename or '?'))}, line {cause.lineno}"
    frames = traceback.extract_tb(cause.__traceback__)
    places = [(Path(frame.filename).resolve(), frame.lineno) for frame in frames]
    for is_likely in (_is_user_file, _is_outside_edgetl):
        for path, line in reversed(places):
            if is_likely(path):
                return f" at {_relative_to_cwd(path)}, line {line}"
    return ""


def _is_outside_edgetl(path: Path) -> bool:
    return path.is_file() and _PACKAGE not in path.parents and _STANDARD_LIBRARY not in path.parents


def _is_user_file(path: Path) -> bool:
    return _is_outside_edgetl(path) and not _INSTALLED & set(path.parts)


def _relative_to_cwd(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def record_code(model: str) -> ModelCode | None:
    """Return the files of the module of a model, and of all modules that it imports from its folder.

    Installed packages and edgetl are left out.

    Args:
        model: name of the model; the result is None for a stock architecture.

    Raises:
        ArchitectureError: the module cannot be imported or has no file.
    """
    if source_of(model) != "python":
        return None
    module_name = model.partition(":")[0]
    file = _file_of(import_module(module_name))
    if file is None:
        raise ArchitectureError(
            f"The module {module_name} has no file. Put the model in a .py file."
        )
    depth = module_name.count(".") + (file.name == "__init__.py")
    root = file.parents[depth]
    top = module_name.partition(".")[0]
    files: dict[str, str] = {}
    pending, visited = list(_with_parents(module_name)), set()
    while pending:
        name = pending.pop()
        imported = _find_imported(name)
        if name in visited or imported is None:
            continue
        visited.add(name)
        path = _file_of(imported)
        if path is None or not _belongs_to(path, root, name.partition(".")[0] == top):
            continue
        files[path.relative_to(root).as_posix()] = sha256_file(path)
        if path.suffix == ".py":
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            pending += _list_imports(path, package)
    return ModelCode(root, module_name, dict(sorted(files.items())))


def restore_code(code: ModelCode) -> None:
    """Import the recorded module of a run from its folder, or from the current one.

    Raises:
        RunError: a file is gone or was changed, or another module of the same name is imported.
        ArchitectureError: importing the module raised an error.
    """
    roots = dict.fromkeys((code.root, Path.cwd()))
    root = next((root for root in roots if not _list_changes(code, root)), None)
    if root is None:
        missing = [name for name in code.files if not (code.root / name).is_file()]
        if missing:
            raise RunError(
                f"The code of the model is gone: {code.root / missing[0]} does not exist. Restore "
                "it, run the command in a folder with the same files, or run finetune again."
            )
        changed = ", ".join(_list_changes(code, code.root))
        raise RunError(
            f"The code of the model was changed after training: {changed}. "
            "Restore it, or run finetune again."
        )
    _check_no_conflict(code, root)
    # The folder stays on the path, because functions may import more when they are called.
    if str(root) != sys.path[0]:
        sys.path.insert(0, str(root))
    _import_from_search_path(code.module)


def _list_changes(code: ModelCode, root: Path) -> list[str]:
    return [
        name
        for name, sha256 in code.files.items()
        if not (root / name).is_file() or sha256_file(root / name) != sha256
    ]


def _check_no_conflict(code: ModelCode, root: Path) -> None:
    for name in code.files:
        parts = Path(name).with_suffix("").parts
        module_name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        module = _find_imported(module_name)
        imported_file = None if module is None else _file_of(module)
        if imported_file not in (None, (root / name).resolve()):
            raise RunError(
                f"The run was trained with {module_name} from {root / name}, but this process has "
                f"imported it from {imported_file}. Use a new process."
            )


def _find_imported(name: str) -> ModuleType | None:
    if name in sys.modules:
        return sys.modules[name]
    # A script is not run a second time for a function that it defines.
    main = sys.modules["__main__"]
    return main if get_main_module_name(main) == name else None


def _file_of(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if file else None


def _belongs_to(path: Path, root: Path, is_same_package: bool) -> bool:
    if not path.is_relative_to(root) or _PACKAGE in path.parents:
        return False
    if _INSTALLED & set(root.parts):
        return is_same_package
    return not _INSTALLED & set(path.relative_to(root).parts)


def _list_imports(path: Path, package: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_parents(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *filter(None, [node.module])])
            yield from _with_parents(base)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))
