"""An option is declared once: everything else derives from the field of the configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from edgetl.cli import app as program
from edgetl.cli.app import format_error
from edgetl.cli.command import Command
from edgetl.cli.config_options import config_options
from edgetl.core.config.finetune import RECIPE, FinetuneConfig
from edgetl.core.config.options import option, validate
from edgetl.core.config.parsers import parse_milliseconds
from edgetl.core.config.presets import read_config_file
from edgetl.core.errors import ConfigError
from tools.repo.docs import help_section


@dataclass(frozen=True)
class ExtendedConfig(FinetuneConfig):
    """A configuration with one more option; declaring it here is the only edit."""

    dummy_rate: float = option(0.25, help="Rate of dummies.", panel=RECIPE, ge=0, lt=1)


@dataclass(frozen=True)
class Limits:
    max_p99_ms: float | None = option(None, help="Limit.", metavar="5ms", parse=parse_milliseconds)


@dataclass(frozen=True)
class Config:
    scopes: tuple[str, ...] = option(("model",), help="Scopes.", name="scope", basic=True)
    threads: tuple[int, ...] = option((), help="Threads.", unset="all")
    mode: Literal["fast", "slow"] = option("fast", help="Mode.")
    profile: bool = option(False, help="Profile.")
    bench: bool = option(True, help="Bench.")
    output: Path | None = option(None, help="File.", short="o", basic=True)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        validate(self)


def make_app(config: type, received: list[dict[str, Any]]) -> typer.Typer:
    """Return a program whose command `run` records the values of its options."""
    app = typer.Typer(rich_markup_mode=None, add_completion=False)

    @config_options(config)
    def run(options: dict[str, Any], target: str = "here") -> None:
        """Run."""
        received.append(options)

    app.callback()(lambda: None)
    app.command(cls=Command)(run)
    return app


@pytest.fixture
def received() -> list[dict[str, Any]]:
    return []


def test_new_option_is_on_command_line_and_in_help(received: list[dict[str, Any]]) -> None:
    app = make_app(ExtendedConfig, received)
    assert CliRunner().invoke(app, ["run", "--dummy-rate", "0.5"]).exit_code == 0
    assert received == [{"dummy_rate": 0.5}]
    full = CliRunner().invoke(app, ["run", "--help-all"]).output
    assert "--dummy-rate" in full[full.index("Recipe:") :]
    assert "Rate of dummies.  [default: 0.25]" in full
    assert "--dummy-rate" not in CliRunner().invoke(app, ["run", "--help"]).output


def test_new_option_is_in_toml_json_and_docs(
    received: list[dict[str, Any]], tmp_path: Path
) -> None:
    file = tmp_path / "my.toml"
    file.write_text("dummy-rate = 0.5")
    values = read_config_file(file, ExtendedConfig)
    assert values == {"dummy_rate": 0.5}
    config = ExtendedConfig(Path("photos"), **values)
    assert config.to_json()["dummy_rate"] == 0.5
    assert ExtendedConfig.from_json(config.to_json()) == config
    section = help_section(make_app(ExtendedConfig, received), "run")
    assert section.startswith("## edgetl run\n")
    assert "--dummy-rate <float>" in section


def test_range_of_new_option_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"^dummy_rate must be < 1, got 1\.0\.$"):
        ExtendedConfig(Path("photos"), dummy_rate=1.0)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {}),
        (["--scope", "model, file", "--scope", "image"], {"scopes": ("model", "file", "image")}),
        (["--threads", "1,2"], {"threads": (1, 2)}),
        (["--mode", "slow"], {"mode": "slow"}),
        (["--profile", "--no-bench"], {"profile": True, "bench": False}),
        (["-o", "x.json"], {"output": Path("x.json")}),
        (["--max-p99", "800us"], {"max_p99_ms": 0.8}),
    ],
)
def test_command_receives_parsed_values_of_given_options(
    received: list[dict[str, Any]], arguments: list[str], expected: dict[str, Any]
) -> None:
    result = CliRunner().invoke(make_app(Config, received), ["run", *arguments])
    assert result.exit_code == 0, result.output
    assert received == [expected]


def test_all_invalid_texts_are_reported_by_option(received: list[dict[str, Any]]) -> None:
    arguments = ["run", "--threads", "two", "--batch-size", "many"]

    @dataclass(frozen=True)
    class Both(Config):
        batch_ms: float | None = option(
            None, help="Time.", name="batch-size", parse=parse_milliseconds
        )

    # The annotations of a local class are resolved in its module.
    result = CliRunner().invoke(make_app(Both, received), arguments)
    assert isinstance(result.exception, ConfigError)
    assert format_error(result.exception).splitlines() == [
        "--threads: must be integers separated by commas, such as 1,2,4, got 'two'.",
        "--batch-size: 'many' is not a latency. Write it as 5ms, 800us or 0.2s.",
    ]


def test_flag_on_by_default_is_negatable_and_others_are_not(
    received: list[dict[str, Any]],
) -> None:
    output = CliRunner().invoke(make_app(Config, received), ["run", "--help-all"]).output
    assert "--bench / --no-bench" in output
    assert "--no-profile" not in output


def test_option_without_parser_for_its_type_is_rejected() -> None:
    @dataclass(frozen=True)
    class Broken:
        pair: tuple[int, int] = option((1, 2), help="Pair.")

    with pytest.raises(TypeError, match="needs a parser"):
        config_options(Broken)(lambda options: None)


def test_program_reports_config_errors_by_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(command: str) -> None:
        Config(threads=(0,))
        FinetuneConfig(Path("photos"), budget_s=-1.0)

    monkeypatch.setattr(program, "create_app", fail)
    monkeypatch.setattr(program, "tolerate_closed_pipes", lambda: None)
    monkeypatch.setattr(program, "install_signal_handlers", lambda: None)
    with pytest.raises(SystemExit) as exit_info:
        program.main()
    assert exit_info.value.code == 1
    assert "--budget must be > 0, got -1.0 s." in capsys.readouterr().err
