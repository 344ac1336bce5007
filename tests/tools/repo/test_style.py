from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tools.repo.golden import differences, mask_json
from tools.repo.style import ROOT, check_classes, check_docstrings, check_module


def messages(source: str, path: str = "edgetl/core/files.py") -> list[str]:
    return [message for _, message in check_module(ROOT / path, ast.parse(source))]


@pytest.mark.parametrize(
    "source",
    [
        "found = 1",
        "def f(told): ...",
        "def f(*, given=1): ...",
        "for one in []: ...",
        "self.made = 1",
        "[seen for seen in x]",
        "def kept(): ...",
        "with x as own: ...",
        "if (known := 1): ...",
        "_has = 1",
    ],
)
def test_banned_name_is_reported(source: str) -> None:
    (message,) = messages(source)
    assert "does not say what it holds" in message


@pytest.mark.parametrize("source", ["matches = found", "x.found", "class A:\n    found: int"])
def test_reading_or_declaring_a_field_is_allowed(source: str) -> None:
    expected = 1 if ":" in source else 0
    assert len(messages(source)) == expected


@pytest.mark.parametrize(
    ("path", "count"), [("a/feeding.py", 1), ("a/timing.py", 0), ("a/loader.py", 0)]
)
def test_gerund_module_is_reported_unless_a_field_term(path: str, count: int) -> None:
    assert len(messages("", path)) == count


def test_docstring_openings_are_reported_for_attributes_too() -> None:
    source = '"""Of a file."""\nclass A:\n    """Row."""\n    x: int\n    """As told."""\n'
    assert [line for line, _ in check_docstrings(ast.parse(source))] == [1, 5]
    assert not list(check_docstrings(ast.parse('"""Offline mode."""')))


def test_long_function_is_reported_by_folder() -> None:
    source = "def f():\n" + "    x = 1\n" * 90
    assert "91 lines" in messages(source)[0]
    assert messages(source, "edgetl/cli/bench.py") == []


def test_long_test_name_is_reported() -> None:
    assert messages(f"def test_{'a' * 60}(): ...") != []
    assert messages(f"def test_{'a' * 55}(): ...") == []


def test_class_defined_twice_is_reported_once() -> None:
    tree = ast.parse("class A: ...")
    trees = {ROOT / "edgetl/a.py": tree, ROOT / "tools/b.py": tree, ROOT / "tests/c.py": tree}
    ((path, (line, message)),) = check_classes(trees)
    assert (path, line) == (ROOT / "tools/b.py", 1)
    assert "edgetl/a.py" in message


@pytest.mark.slow  # `make check` checks the tree as well
def test_tree_has_no_violation() -> None:
    paths = [
        path
        for folder in ("edgetl", "tools", "tests")
        for path in Path(ROOT / folder).rglob("*.py")
    ]
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}
    violations = [
        (path, violation) for path, tree in trees.items() for violation in check_module(path, tree)
    ]
    assert not violations
    assert not list(check_classes(trees))


def test_golden_masks_values_that_vary() -> None:
    masked = mask_json('{"seconds": 1.5, "rows": [{"created": "now", "model": "m"}]}')
    assert "1.5" not in masked
    assert "now" not in masked
    assert '"m"' in masked


def test_golden_reports_changed_new_and_missing_artifacts() -> None:
    before, after = {"a": "1\n2", "b": "x", "c": "same"}, {"a": "1\n3", "c": "same", "d": "y"}
    assert [text.splitlines()[0] for text in differences(before, after)] == [
        "a: 2 lines differ",
        "b: missing",
        "d: new",
    ]
