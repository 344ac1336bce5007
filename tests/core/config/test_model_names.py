"""Models that are functions: their names, and what cannot be imported by later commands."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest

from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.config.options import get_option_fields
from edgetl.core.errors import ConfigError
from tests.conftest import ROOT

if TYPE_CHECKING:
    from torch import nn


def build(classes: int) -> nn.Module:
    raise AssertionError("a configuration does not call the function")


class Network:
    """Stands for a class of modules, which takes the number of classes like a function."""

    @staticmethod
    def build(classes: int) -> nn.Module:
        raise AssertionError


@functools.wraps(build)
def _renamed(classes: int) -> nn.Module:
    return build(classes)


def test_function_becomes_its_name() -> None:
    config = FinetuneConfig("photos", model=build)
    assert config.model == f"{__name__}:build"
    assert config == FinetuneConfig("photos", model=f"{__name__}:build")
    assert FinetuneConfig.from_json(config.to_json()) == config
    assert repr(config) == f"FinetuneConfig(data='photos', model='{__name__}:build')"


def test_class_becomes_its_name() -> None:
    model: Any = Network
    assert FinetuneConfig("photos", model=model).model == f"{__name__}:Network"


def test_model_stays_a_text_on_the_command_line() -> None:
    (declared,) = (item for item in get_option_fields(FinetuneConfig) if item.name == "model")
    assert declared.kinds == (str,)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda classes: None, "got a lambda. Use a function"),
        (Network.build, "got Network.build, which is defined inside a function or class. Use"),
        (functools.partial(build, 3), "got an object of type partial. Use a function"),
        (Network(), "got an object of type Network. Use a function"),
        (3, "got an object of type int. Use a function"),
        (_renamed, "build is not the function that was passed. Give the function a name"),
    ],
)
def test_unimportable_model_is_an_error(model: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        FinetuneConfig("photos", model=model)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_model_error_is_reported_with_others() -> None:
    with pytest.raises(ConfigError, match=r"(?s)epochs must be.*a lambda"):
        FinetuneConfig("photos", model=lambda classes: build(classes), epochs=-1)


def run_script(path: Path, code: str, *options: str) -> subprocess.CompletedProcess[str]:
    path.write_text(dedent(code), encoding="utf-8")
    return subprocess.run(
        [sys.executable, *(options or (path.name,))],
        cwd=path.parent,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


SCRIPT = """
    from edgetl import FinetuneConfig

    def build(classes):
        raise AssertionError

    if __name__ == "__main__":
        print(FinetuneConfig("photos", model=build).model)
    """


def test_function_of_a_script_gets_the_name_of_its_file(tmp_path: Path) -> None:
    process = run_script(tmp_path / "training.py", SCRIPT)
    assert process.stdout == "training:build\n", process.stderr


def test_function_of_a_program_gets_the_name_of_its_module(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package/training.py").write_text(dedent(SCRIPT), encoding="utf-8")
    process = run_script(tmp_path / "unused.py", "", "-m", "package.training")
    assert process.stdout == "package.training:build\n", process.stderr


def test_script_that_cannot_be_imported_is_an_error(tmp_path: Path) -> None:
    unguarded = SCRIPT.replace('if __name__ == "__main__":', "if True:")
    process = run_script(tmp_path / "training.py", unguarded)
    assert "importing training.py would run all of it again. Put its calls below" in process.stderr
    process = run_script(tmp_path / "my-training.py", SCRIPT)
    assert "my-training.py is not the name of a module. Rename it" in process.stderr


def test_function_of_an_interactive_session_is_an_error(tmp_path: Path) -> None:
    process = run_script(tmp_path / "unused.py", "", "-c", dedent(SCRIPT))
    assert "build is defined in a notebook or an interactive session. Move it" in process.stderr
