"""Options: fields of a configuration with their help, range and name on the command line.

A field that `option` declares is all there is to write. The configuration is validated from it, and
the command line, TOML files and docs/reference/cli.md derive from it.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from edgetl.core.config.parsers import split_list
from edgetl.core.errors import ConfigError

T = TypeVar("T")
_UNIT_SUFFIXES = {"_s": "s", "_ms": "ms"}
_METADATA_KEY = "option"
MAX_SEED = 2**63 - 1
"""Largest seed that PyTorch and NumPy accept."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Option:
    """Declaration of a field: what users read about it and which values it takes."""

    help: str
    panel: str = ""
    """Group in `--help-all`; empty for the first one."""
    basic: bool = False
    """Whether `--help` shows the option; `--help-all` shows all."""
    name: str = ""
    """Name on the command line; empty derives it from the field, see `OptionField.flag`."""
    short: str = ""
    """Single letter that works as well."""
    negatable: bool = False
    """Whether a flag has a `--no-` form; a flag that is on by default has one in any case."""
    metavar: str = ""
    unset: str = ""
    """Effect of leaving the option out, for the help of options whose default is None or empty."""
    parse: Callable[[str], Any] | None = None
    """Parser of the text on the command line or in a TOML file; of each word if it is a list."""
    none_word: str = "auto"
    """Value in a TOML file that stands for None, as TOML has no null."""
    empty_word: str = ""
    """Word that stands for an empty list."""
    path_field: str = ""
    """Field that takes the value if it is a path to a file."""
    integer_as_text: bool = False
    """Whether an integer in a TOML file stands for its text."""
    preset: bool = False
    """Whether presets set the field."""
    affects_choices: bool = False
    """Whether a choice that a run made by measuring may be impossible with another value."""
    command_line: bool = True
    """Whether it is an option of the command; otherwise only files and Python set it."""
    in_files: bool = True
    """Whether a file of `--config` may set it."""
    choices: tuple[str, ...] = ()
    """Allowed texts, if they are not the annotation's."""
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    unit: str = ""
    """Unit after the bound in messages."""
    reason: str = ""
    """Explanation of the lower bound in messages."""
    nonempty: str = ""
    """Items of which a list needs at least one, for the message."""


def option(default: Any = MISSING, **declaration: Any) -> Any:
    """Declare a field of a configuration; the keywords are the fields of `Option`."""
    return field(default=default, metadata={_METADATA_KEY: Option(**declaration)})


@dataclass(frozen=True, eq=False, repr=False)
class OptionField:
    """A field that was declared with `option`, with its resolved type."""

    name: str
    option: Option
    default: Any
    kinds: tuple[Any, ...]
    """Types of the value, or of the items if it is a list, without None."""
    is_list: bool
    is_nullable: bool

    @property
    def flag(self) -> str:
        """Name on the command line: `label_smoothing` is --label-smoothing, `budget_s` --budget."""
        return "--" + (self.option.name or _drop_unit(self.name).replace("_", "-"))

    @property
    def keys(self) -> frozenset[str]:
        """Names in a TOML file, in which - and _ are the same."""
        return frozenset({self.name, self.flag.removeprefix("--").replace("-", "_")})

    @property
    def choices(self) -> tuple[str, ...]:
        """Allowed texts; empty if there is no such restriction."""
        literals = [kind for kind in self.kinds if get_origin(kind) is Literal]
        return self.option.choices or tuple(text for kind in literals for text in get_args(kind))

    @property
    def default_text(self) -> str:
        """Default as shown in the help."""
        if self.default in (None, ()) or self.default is MISSING:
            return self.option.unset
        if isinstance(self.default, tuple):
            return ",".join(map(str, self.default))
        text = f"{self.default:g}" if isinstance(self.default, float) else str(self.default)
        return text + _unit_of(self.name)

    def parse(self, texts: Sequence[str]) -> Any:
        """Parse the text of the option; a list may be given in several texts or separated by commas.

        Raises:
            ConfigError: The text is not a value of this option. The message does not name it.
        """
        if not self.is_list:
            return self._parse_word(texts[-1])
        words = split_list(texts)
        if texts and not words:
            raise ConfigError(f"must not be empty, got {', '.join(map(repr, texts))}.")
        if words == (self.option.empty_word,):
            return ()
        return tuple(dict.fromkeys(map(self._parse_word, words)))

    def assign(self, values: dict[str, Any], value: Any) -> None:
        """Set the field in `values`, or `path_field` if the value is a path to a file."""
        name = self.option.path_field if isinstance(value, Path) else ""
        values[name or self.name] = value

    def _parse_word(self, text: str) -> Any:
        if self.option.parse is not None:
            return self.option.parse(text)
        kind = next((kind for kind in self.kinds if kind in (int, float)), str)
        try:
            return kind(text)
        except ValueError as cause:
            noun = "integers" if kind is int else "numbers"
            example = self.option.metavar or "1,2,4"
            raise ConfigError(
                f"must be {noun} separated by commas, such as {example}, got {text!r}."
            ) from cause

    def find_problem(self, value: Any) -> str | None:
        """Return what is wrong with a value, or None."""
        if value is None and self.is_nullable:
            return None
        if not self.is_list:
            return self._find_item_problem(value)
        if not value and self.option.nonempty:
            choices = f": {', '.join(self.choices)}" if self.choices else ""
            return f"{{{self.name}}} must name at least one {self.option.nonempty}{choices}."
        if self.choices:
            unknown = [item for item in value if item not in self.choices]
            if not unknown:
                return None
            return (
                f"{{{self.name}}} must be among {', '.join(self.choices)}, "
                f"got {', '.join(map(repr, unknown))}."
            )
        return next((problem for item in value if (problem := self._find_item_problem(item))), None)

    def _find_item_problem(self, value: Any) -> str | None:
        is_numeric = int in self.kinds or float in self.kinds
        if value in self.choices or not (is_numeric or self.choices):
            return None
        if not is_numeric:
            return f"{{{self.name}}} must be one of {', '.join(self.choices)}, got {value!r}."
        expected = "a number"
        if isinstance(value, int | float):
            expected = _describe_violation(self.option, value)
        if not expected:
            return None
        alternatives = "".join(f" or {choice}" for choice in self.choices)
        return f"{{{self.name}}} must be {expected}{alternatives}, got {self._format(value)}."

    def _format(self, value: Any) -> str:
        unit = _unit_of(self.name)
        return f"{value} {unit}" if unit else str(value)


def _describe_violation(declared: Option, value: float) -> str:
    """Return the bound that a number violates; empty if it violates none and is finite."""
    unit = f" {declared.unit}" if declared.unit else ""
    reason = f" ({declared.reason})" if declared.reason else ""
    # NaN violates every bound.
    if declared.ge is not None and not value >= declared.ge:
        return f">= {declared.ge}{unit}{reason}"
    if declared.gt is not None and not value > declared.gt:
        return f"> {declared.gt}{unit}{reason}"
    if declared.le is not None and not value <= declared.le:
        return f"<= {declared.le}{unit}"
    if declared.lt is not None and not value < declared.lt:
        return f"< {declared.lt}{unit}"
    return "" if math.isfinite(value) else "finite"


def _drop_unit(name: str) -> str:
    suffix = next((suffix for suffix in _UNIT_SUFFIXES if name.endswith(suffix)), "")
    return name.removesuffix(suffix)


def _unit_of(name: str) -> str:
    return next((unit for suffix, unit in _UNIT_SUFFIXES.items() if name.endswith(suffix)), "")


@cache
def get_option_fields(config: type) -> tuple[OptionField, ...]:
    """Return the fields of a configuration that are options, in order."""
    hints = get_type_hints(config)
    return tuple(
        _make_option_field(declared, hints[declared.name])
        for declared in fields(config)
        if _METADATA_KEY in declared.metadata
    )


def _make_option_field(declared: Field[Any], kind: Any) -> OptionField:
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    values = tuple(kind for kind in kinds if kind is not type(None))
    is_list = get_origin(values[0]) is tuple and get_args(values[0])[-1] is Ellipsis
    return OptionField(
        name=declared.name,
        option=declared.metadata[_METADATA_KEY],
        default=declared.default,
        kinds=get_args(values[0])[:1] if is_list else values,
        is_list=is_list,
        is_nullable=type(None) in kinds,
    )


def iterate_all_option_fields(config: type) -> Iterator[OptionField]:
    """Yield the options of a configuration and of those nested in it."""
    yield from get_option_fields(config)
    for nested in get_nested_configs(config).values():
        yield from iterate_all_option_fields(nested)


@cache
def get_nested_configs(config: type) -> dict[str, type]:
    """Return the fields that are configurations themselves, whose options belong to the command."""
    hints = get_type_hints(config)
    names = [declared.name for declared in fields(config)]
    return {name: hints[name] for name in names if is_dataclass(hints[name])}


def build_config(config: type[T], **values: Any) -> T:
    """Create a configuration from values by field, those of nested configurations among them."""
    kind: type = config
    for name, nested in get_nested_configs(kind).items():
        names = {declared.name for declared in iterate_all_option_fields(nested)}
        nested_values = {key: values.pop(key) for key in names & values.keys()}
        values[name] = build_config(nested, **nested_values)
    return config(**values)


def options_to_json(config: Any) -> dict[str, Any]:
    """Return the options that differ from their defaults, by field, also of nested configurations.

    `read_config_file` reads them back, and `build_config` creates the configuration.
    """
    kind: type = type(config)
    content = {}
    for declared in get_option_fields(kind):
        value = getattr(config, declared.name)
        if value != declared.default:
            content[declared.name] = str(value) if isinstance(value, Path) else value
    for name in get_nested_configs(kind):
        content |= options_to_json(getattr(config, name))
    return content


def get_flags(config: type) -> Mapping[str, str]:
    """Return the name on the command line of every field: `--option`, or ARGUMENT if it is none."""
    flags = {declared.name: declared.name.upper() for declared in fields(config)}
    flags.update({declared.name: declared.flag for declared in get_option_fields(config)})
    for nested in get_nested_configs(config).values():
        flags.update(get_flags(nested))
    return flags


@cache
def _list_path_fields(config: type) -> list[str]:
    hints = get_type_hints(config)
    return [
        item.name
        for item in fields(config)
        if Path in (hints[item.name], *get_args(hints[item.name]))
    ]


def validate(config: Any, contradictions: Iterable[str | None] = ()) -> None:
    """Check the range and choices of every option, and report all problems at once.

    Paths in other types, such as `str` or RunDirectory, are converted to Path first.

    Args:
        config: Configuration whose fields are declared with `option`.
        contradictions: Problems of several fields together, or None. Fields are in braces, so that
            the command line can name its options: "{input_device} cuda needs {device} cuda."

    Raises:
        ConfigError: Values are out of range or contradict each other.
    """
    kind: type = type(config)
    for name in _list_path_fields(kind):
        value = getattr(config, name)
        if value is not None:
            object.__setattr__(config, name, Path(value))
    problems = [
        declared.find_problem(getattr(config, declared.name))
        for declared in get_option_fields(kind)
    ]
    raise_config_errors([*problems, *contradictions], kind)


def raise_config_errors(problems: Iterable[str | None], config: type | None = None) -> None:
    """Raise ConfigError with all problems that are not None, one a line.

    Args:
        problems: Problems, or None; with `config`, its fields are in braces.
        config: Configuration that the problems are about.

    Raises:
        ConfigError: There is a problem.
    """
    lines = [problem for problem in problems if problem]
    if lines:
        raise ConfigError("\n".join(lines), config)


def check(condition: bool, problem: str) -> str | None:
    """Return None if the condition holds, else the problem."""
    return None if condition else problem


def repr_config(config: Any) -> str:
    """Return the constructor call of a configuration, without the fields that have their default."""
    changed = []
    for item in fields(config):
        value = getattr(config, item.name)
        default = item.default if item.default_factory is MISSING else item.default_factory()
        if value != default:
            text = repr(str(value) if isinstance(value, Path) else value)
            changed.append(f"{item.name}={text}")
    return f"{type(config).__name__}({', '.join(changed)})"


def config_to_json(config: Any) -> dict[str, Any]:
    """Return the fields of a configuration, with paths as text."""
    return {
        key: str(value) if isinstance(value, Path) else value
        for key, value in asdict(config).items()
    }
