"""Check rules for names and docstrings that ruff lacks: `python -m tools.repo.style [PATH...]`.

    names       a variable, parameter or attribute is not a bare participle or pronoun
    modules     a module is not named by a gerund, except for terms of the field
    docstrings  a docstring does not begin with Of, That, As, Which, From, Where, What or How
    length      a function has at most 80 lines, in `edgetl/cli` 120
    classes     no two classes have the same name
    tests       the name of a test has at most 60 characters

Each violation is printed as `path:line: message`; the exit status is 1 if there are any.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("edgetl", "tools", "tests")

BANNED_NAMES = {
    "able", "asked", "at", "begun", "drawn", "found", "given", "gone", "has", "heard", "held",
    "kept", "known", "made", "meant", "named", "nothing", "one", "own", "place", "said", "seen",
    "shown", "spoken", "taken", "told", "wanted", "whole",
}  # fmt: skip
FIELD_GERUNDS = {
    "formatting", "freezing", "io_binding", "preprocessing", "pretraining", "scoring", "timing",
    "tracking", "training",
}  # fmt: skip
BANNED_OPENINGS = re.compile(r"(Of|That|As|Which|From|Where|What|How)\b")
MAX_FUNCTION_LINES, MAX_COMMAND_LINES = 80, 120
MAX_TEST_NAME = 60

Violation = tuple[int, str]


def check_module(path: Path, tree: ast.Module) -> Iterator[Violation]:
    """Yield (line, message) for every violation in one module."""
    relative = path.relative_to(ROOT)
    if path.stem.endswith("ing") and path.stem.removeprefix("test_") not in FIELD_GERUNDS:
        yield 1, f"module `{path.stem}` is named by a gerund"
    for line, name in banned_names(tree):
        yield line, f"`{name}` does not say what it holds"
    yield from check_docstrings(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        limit = MAX_COMMAND_LINES if relative.parts[:2] == ("edgetl", "cli") else MAX_FUNCTION_LINES
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > limit:
            yield node.lineno, f"`{node.name}` has {lines} lines, the limit is {limit}"
        if node.name.startswith("test_") and len(node.name) > MAX_TEST_NAME:
            yield node.lineno, f"`{node.name}` has {len(node.name)} characters"


def banned_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, name) for every binding of a banned name."""
    for node in ast.walk(tree):
        name = None
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            name = node.attr
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            name = node.name
        if name is not None and name.strip("_") in BANNED_NAMES:
            yield getattr(node, "lineno", 1), name


def check_docstrings(tree: ast.Module) -> Iterator[Violation]:
    """Yield docstrings that begin with a banned word, including those of attributes."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else []:
            if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Constant):
                continue
            text = statement.value.value
            if isinstance(text, str) and (match := BANNED_OPENINGS.match(text.lstrip())):
                yield statement.lineno, f"docstring begins with {match.group(1)!r}"


def check_classes(trees: dict[Path, ast.Module]) -> Iterator[tuple[Path, Violation]]:
    """Yield classes of edgetl and tools whose name is also used by an earlier class."""
    definitions_by_name = defaultdict(list)
    for path, tree in trees.items():
        if path.relative_to(ROOT).parts[0] == "tests":
            continue
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                definitions_by_name[node.name].append((path, node.lineno))
    for name, definitions in definitions_by_name.items():
        for path, line in definitions[1:]:
            first = definitions[0][0].relative_to(ROOT)
            yield path, (line, f"class `{name}` is also defined in {first}")


def main() -> None:
    """Print every violation in the given files and folders, or in the whole tree."""
    default_roots = [ROOT / folder for folder in FOLDERS]
    roots = [Path(argument).absolute() for argument in sys.argv[1:]] or default_roots
    paths = sorted(
        {path for root in roots for path in ([root] if root.is_file() else root.rglob("*.py"))}
    )
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}
    violations = [
        (path, violation) for path, tree in trees.items() for violation in check_module(path, tree)
    ]
    violations += check_classes(trees)
    for path, (line, message) in sorted(violations):
        print(f"{path.relative_to(ROOT)}:{line}: {message}")
    if violations:
        sys.exit(1)


if __name__ == "__main__":
    main()
