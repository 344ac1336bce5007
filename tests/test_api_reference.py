"""The reference of the Python API: complete, its examples run, and no type in it is Any."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields, is_dataclass
from functools import cached_property
from importlib.util import find_spec
from inspect import isfunction
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import edgetl
from tests.device.conftest import BRIEF

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs/reference/python-api.md"
MAX_REPR_LENGTH = 160
CONTROL = "print(open_untyped())"
"""Line of the typed script that must be reported."""


def read_examples() -> list[tuple[int, str]]:
    """Return the line and the code of each Python example of the reference."""
    text = REFERENCE.read_text(encoding="utf-8")
    return [
        (text[: match.start(1)].count("\n"), match[1])
        for match in re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S)
    ]


def test_reference_lists_every_public_name() -> None:
    entries = set(re.findall(r"^::: edgetl\.(\w+)$", REFERENCE.read_text(encoding="utf-8"), re.M))
    errors = {name for name in edgetl.__all__ if name.endswith("Error")}
    assert entries == set(edgetl.__all__) - errors


def test_reference_has_example_of_every_function() -> None:
    called = {
        node.func.attr
        for _, code in read_examples()
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "edgetl"
    }
    assert called >= {name for name in edgetl.__all__ if name.islower()}


@pytest.fixture
def current_folder(
    parts: Path, random_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Return the current folder, a new one with the files that the examples read."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(parts / "train", "photos")
    shutil.copy(random_weights, ".")
    # The runs of an experiment are processes of their own and must find this checkout.
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


@pytest.mark.slow
def test_examples_of_reference_run(
    current_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Full blocks of a benchmark would take most of a minute.
    for module in ("device.bench.runner", "device.loadgen.loadgen", "export.candidates"):
        monkeypatch.setattr(f"edgetl.{module}.BenchProtocol", lambda: BRIEF)
    # Timing training steps for the plan of an experiment takes as long as a run here.
    monkeypatch.setattr(
        "edgetl.experiment.plan._estimate_run_seconds",
        lambda runs, progress, scratch: {run.name: 1.0 for run in runs},
    )
    has_loadgen = find_spec("mlperf_loadgen") is not None
    namespace: dict[str, Any] = {}
    for line, code in read_examples():
        if has_loadgen or "edgetl.loadgen(" not in code:
            # Empty lines before the code let tracebacks show lines of the page.
            exec(compile("\n" * line + code, str(REFERENCE), "exec"), namespace)
    assert "has finished, so there is nothing to resume" in capsys.readouterr().out
    assert all(outcome.passed for outcome in edgetl.verify(namespace["bundle"]))
    assert namespace["result"].path == Path("latency.json")
    assert {path.name for path in current_folder.glob("*.html")} == {
        "bundle.html",
        "evaluation.html",
        "latencies.html",
    }
    for value in namespace.values():
        if type(value).__name__ in edgetl.__all__:
            text = repr(value).replace(str(current_folder), "")
            assert len(text) <= MAX_REPR_LENGTH, text
            assert "\n" not in text, text


def find_public_dataclasses() -> dict[str, type]:
    """Return the dataclasses behind the public names: their fields, properties and methods."""
    classes: dict[str, type] = {}
    pending: list[Any] = [getattr(edgetl, name) for name in edgetl.__all__]
    while pending:
        item = pending.pop()
        pending += get_args(item)
        if isfunction(item):
            # Parameters may have types that are imported for type checkers only.
            pending.append(eval(item.__annotations__.get("return", "None"), item.__globals__))
        elif isinstance(item, type) and is_dataclass(item) and item.__name__ not in classes:
            classes[item.__name__] = item
            pending += get_type_hints(item).values()
            members = [value for name, value in vars(item).items() if not name.startswith("_")]
            pending += [
                getattr(member, "fget", getattr(member, "func", member)) for member in members
            ]
    return classes


def write_typed_script() -> list[str]:
    """Return a script with the examples, every public name and every attribute behind them."""
    lines = ["# mypy: disallow-any-expr", *(code for _, code in read_examples())]
    lines += [f"print(edgetl.{name})" for name in edgetl.__all__]
    for name, kind in find_public_dataclasses().items():
        attributes = [field.name for field in fields(kind)] + [
            attribute
            for attribute, member in vars(kind).items()
            if isinstance(member, property | cached_property)
        ]
        lines.append(f"from {kind.__module__} import {name}")
        lines.append(f"def use_{name}(value: {name}) -> None:")
        lines += [
            f"    print(value.{attribute})" for attribute in attributes if attribute[0] != "_"
        ]
    lines += ["from typing import Any", "def open_untyped() -> Any: ...", CONTROL]
    return "\n".join(lines).splitlines()


@pytest.mark.slow
def test_public_api_is_typed_without_any(tmp_path: Path) -> None:
    lines = write_typed_script()
    script = tmp_path / "api_usage.py"
    script.write_text("\n".join(lines), encoding="utf-8")
    process = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-pretty", script],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    reports = re.findall(r"api_usage\.py:(\d+): error: (.*)", process.stdout)
    problems = [
        f"{lines[int(number) - 1].strip()}: {message}"
        for number, message in reports
        # The shape of an array is Any to NumPy itself.
        if "Any" in message.replace("tuple[Any, ...]", "").replace('contains "Any"', "")
        or not message.endswith("[misc]")
    ]
    assert problems.pop(-1).startswith(CONTROL), process.stdout + process.stderr
    assert not problems, "\n".join(problems)
