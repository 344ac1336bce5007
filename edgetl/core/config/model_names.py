"""Names of models in configurations: a stock architecture, or a function as `module:function`."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING

from edgetl.core.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    class ModelName:
        """Type of a field that takes a name or a function and holds a name, see `OptionalPath`."""

        def __get__(self, instance: object, owner: type | None = None) -> str: ...

        def __set__(self, instance: object, value: str | Callable[[int], nn.Module]) -> None: ...

else:
    ModelName = str


def name_model(model: object) -> str:
    """Return the name of a model: a string as it is, a function or class as `module:function`.

    Other processes, such as those of a later export, import the function under this name.

    Raises:
        ConfigError: The function cannot be imported under its name. The message speaks of {model}.
    """
    if isinstance(model, str):
        return model
    if not isinstance(model, FunctionType | type) or not model.__qualname__.isidentifier():
        raise ConfigError(
            f"{{model}} must be a name or a function, got {_describe(model)}. Use a function that "
            "`def` defines at the top level of a .py file."
        )
    name, module_name = model.__qualname__, model.__module__
    module = sys.modules.get(module_name)
    if module_name == "__main__":
        module_name = _name_main_module(name)
    if getattr(module, name, None) is not model:
        raise ConfigError(
            f"{{model}} must be importable, but {module_name}.{name} is not the function that was "
            "passed. Give the function a name of its own at the top level of its module."
        )
    return f"{module_name}:{name}"


def _describe(model: object) -> str:
    if isinstance(model, FunctionType | type):
        name = model.__qualname__
        is_lambda = name.endswith("<lambda>")
        return "a lambda" if is_lambda else f"{name}, which is defined inside a function or class"
    return f"an object of type {type(model).__name__}"


def get_main_module_name(module: ModuleType) -> str | None:
    """Return the name under which the program being run can be imported; None in a notebook."""
    if module.__spec__ is not None:  # `python -m NAME`
        return module.__spec__.name
    file = getattr(module, "__file__", None)
    return Path(file).stem if file else None


def _name_main_module(function: str) -> str:
    main = sys.modules["__main__"]
    name = get_main_module_name(main)
    if name is None or main.__file__ is None:
        raise ConfigError(
            f"{{model}} must be importable by later commands, but {function} is defined in a "
            "notebook or an interactive session. Move it to a .py file and import it from there."
        )
    script = Path(main.__file__)
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(
            f"{{model}} must be importable by later commands, but {script.name} is not the name of "
            f"a module. Rename it, or move {function} to a module."
        )
    if not _has_main_guard(script):
        raise ConfigError(
            f"{{model}} must be importable by later commands, but importing {script.name} would "
            'run all of it again. Put its calls below `if __name__ == "__main__":`, or move '
            f"{function} to a module."
        )
    return name


def _has_main_guard(script: Path) -> bool:
    tree = ast.parse(script.read_bytes())
    return any(
        isinstance(node, ast.Name) and node.id == "__name__"
        for statement in tree.body
        if isinstance(statement, ast.If)
        for node in ast.walk(statement.test)
    )
