"""Options of a command from the fields of its configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Mapping
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

import typer

from edgetl.core.config.options import (
    OptionField,
    iterate_all_option_fields,
    raise_config_errors,
)
from edgetl.core.errors import ConfigError


def config_options(
    config: type, only: Container[str] | None = None, parameter: str = "options"
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of a configuration.

    The command declares its positional arguments, and options that are not fields of the
    configuration, as usual. In `parameter` it receives the fields that the user set, by name and
    parsed, those of nested configurations among them; `build_config` takes them. What was left out
    is absent, so that the configuration's defaults, a preset or a file apply.

    Args:
        config: Configuration whose fields become options.
        only: Names of the fields; None is all.
        parameter: Parameter of the command that receives the values.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        option_parameters = [
            part for part in typer_parameters(config) if only is None or part.name in only
        ]
        parameters = [
            *option_parameters,
            *(part for name, part in signature.parameters.items() if name != parameter),
        ]

        @wraps(command)
        def run(**arguments: Any) -> None:
            typed = {part.name: arguments.pop(part.name) for part in option_parameters}
            command(**arguments, **{parameter: parse_options(config, typed)})

        # Typer reads both. Keyword-only parameters may follow others that have a default.
        keyword_only = [part.replace(kind=inspect.Parameter.KEYWORD_ONLY) for part in parameters]
        run.__dict__["__signature__"] = signature.replace(parameters=keyword_only)
        run.__annotations__ = {part.name: part.annotation for part in parameters}
        return run

    return decorate


def typer_parameters(config: type) -> list[inspect.Parameter]:
    """Return a parameter for Typer for each option, including those of nested configurations.

    All default to None, which stands for an option that was left out.
    """
    return [
        inspect.Parameter(
            declared.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[_typer_type(declared) | None, _typer_option(declared)],
        )
        for declared in iterate_all_option_fields(config)
        if declared.option.command_line
    ]


def parse_options(config: type, typed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the fields that were set, from the arguments that Typer passed.

    Raises:
        ConfigError: Texts are not values of their options, all problems at once.
    """
    values: dict[str, Any] = {}
    problems = []
    for declared in iterate_all_option_fields(config):
        argument = typed.get(declared.name)
        if argument is None:
            continue
        try:
            if declared.is_list or declared.option.parse is not None:
                argument = declared.parse(argument if isinstance(argument, list) else [argument])
            declared.assign(values, argument)
        except ConfigError as cause:
            problems.append(f"{{{declared.name}}}: {cause}")
    raise_config_errors(problems, config)
    return values


def _typer_type(declared: OptionField) -> Any:
    if declared.is_list:
        return list[str]
    if declared.option.parse is not None:
        return str
    (kind,) = declared.kinds
    is_supported = kind in (bool, int, float, str, Path) or get_origin(kind) is Literal
    if not is_supported:
        raise TypeError(f"{declared.name}: an option of type {kind} needs a parser.")
    return kind


def _typer_option(declared: OptionField) -> Any:
    names, default_text = declared.flag, declared.default_text
    if declared.kinds == (bool,):
        default_text = ""
        if declared.default or declared.option.negatable:
            negation = f"no-{names.removeprefix('--')}"
            default_text = names.removeprefix("--") if declared.default else negation
            names += f"/--{negation}"
    short = [f"-{declared.option.short}"] if declared.option.short else []
    return typer.Option(
        names,
        *short,
        help=declared.option.help,
        metavar=declared.option.metavar or None,
        show_default=default_text or False,
        hidden=not declared.option.basic,
        rich_help_panel=declared.option.panel or None,
    )
