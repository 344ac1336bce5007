from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.cli.app import format_error
from edgetl.core.config.bench import BenchConfig
from edgetl.core.config.candidates import CandidatesConfig
from edgetl.core.config.compare import CompareConfig
from edgetl.core.config.export import ExportConfig
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.config.loadgen import LoadgenConfig
from edgetl.core.config.options import (
    check,
    get_flags,
    get_option_fields,
    option,
    raise_config_errors,
    validate,
)
from edgetl.core.config.parsers import parse_duration
from edgetl.core.errors import (
    BenchError,
    ConfigError,
    EdgetlError,
    WeightsError,
    error_from_json,
    error_to_json,
)


@dataclass(frozen=True)
class Inner:
    max_p99_ms: float | None = option(None, help="Limit.", gt=0)

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class Config:
    count: int = option(1, help="Count.", ge=1, reason="none is useless")
    size: int | None = option(None, help="Size.", ge=32, le=64, unit="pixels")
    share: float = option(0.5, help="Share.", ge=0, lt=1)
    ratio: float = option(1.0, help="Ratio.", gt=0, le=1)
    norm: float = option(0.0, help="Norm.", ge=0)
    budget_s: float | None = option(None, help="Time.", gt=0, parse=parse_duration)
    wait_s: float = option(10.0, help="Time.", parse=parse_duration)
    mode: Literal["fast", "slow"] = option("fast", help="Mode.")
    batch: int | Literal["auto"] | None = option(None, help="Batch.", ge=1, unset="16 to 64")
    scopes: tuple[Literal["model", "file"], ...] = option(
        ("model",), help="Scopes.", name="scope", nonempty="scope"
    )
    threads: tuple[int, ...] = option((), help="Threads.", ge=1, metavar="1,2")
    models: tuple[str, ...] = option(("a", "b"), help="Models.", nonempty="architecture")
    modes: tuple[str, ...] = option((), help="Modes.", choices=("x", "y"), empty_word="none")
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        validate(
            self,
            [check(self.mode == "fast" or self.count == 1, "{mode} slow needs {count} 1.")],
        )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "count must be >= 1 (none is useless), got 0."),
        ({"size": 31}, "size must be >= 32 pixels, got 31."),
        ({"size": 65}, "size must be <= 64 pixels, got 65."),
        ({"share": 1.0}, "share must be < 1, got 1.0."),
        ({"share": -0.1}, "share must be >= 0, got -0.1."),
        ({"share": math.nan}, "share must be >= 0, got nan."),
        ({"ratio": 0.0}, "ratio must be > 0, got 0.0."),
        ({"ratio": 1.1}, "ratio must be <= 1, got 1.1."),
        ({"norm": math.inf}, "norm must be finite, got inf."),
        ({"norm": math.nan}, "norm must be >= 0, got nan."),
        ({"norm": -1.0}, "norm must be >= 0, got -1.0."),
        ({"budget_s": 0.0}, "budget_s must be > 0, got 0.0 s."),
        ({"wait_s": math.inf}, "wait_s must be finite, got inf s."),
        ({"mode": "quick"}, "mode must be one of fast, slow, got 'quick'."),
        ({"batch": 0}, "batch must be >= 1 or auto, got 0."),
        ({"batch": "many"}, "batch must be a number or auto, got many."),
        ({"scopes": ()}, "scopes must name at least one scope: model, file."),
        ({"scopes": ("model", "image")}, "scopes must be among model, file, got 'image'."),
        ({"threads": (1, 0)}, "threads must be >= 1, got 0."),
        ({"models": ()}, "models must name at least one architecture."),
        ({"modes": ("x", "z", "w")}, "modes must be among x, y, got 'z', 'w'."),
        ({"mode": "slow", "count": 2}, "mode slow needs count 1."),
    ],
)
def test_validate_names_field_bound_and_value(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Config(**values)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    "values",
    [
        {"size": 32}, {"size": 64}, {"share": 0.0}, {"ratio": 1.0}, {"batch": "auto"}, {"batch": 1},
        {"threads": ()}, {"scopes": ("file", "model")}, {"modes": ("y",)}, {"budget_s": 1e-9},
    ],
)  # fmt: skip
def test_validate_accepts_boundary(values: dict[str, Any]) -> None:
    Config(**values)


def test_errors_name_fields_or_options() -> None:
    with pytest.raises(ConfigError) as raised:
        Config(budget_s=-1.0, scopes=(), mode="slow", count=2)
    assert str(raised.value).splitlines() == [
        "budget_s must be > 0, got -1.0 s.",
        "scopes must name at least one scope: model, file.",
        "mode slow needs count 1.",
    ]
    assert format_error(raised.value).splitlines() == [
        "--budget must be > 0, got -1.0 s.",
        "--scope must name at least one scope: model, file.",
        "--mode slow needs --count 1.",
    ]


def test_error_keeps_braces_of_values() -> None:
    problem = "{mode} must be one of fast, slow, got '{0}' and '{other}'."
    with pytest.raises(ConfigError) as raised:
        raise_config_errors([problem], Config)
    assert str(raised.value) == problem.replace("{mode}", "mode")
    assert format_error(raised.value) == problem.replace("{mode}", "--mode")


def test_flags_include_nested_configuration() -> None:
    assert get_flags(Config)["max_p99_ms"] == "--max-p99"


def test_flag_of_every_config_is_unique() -> None:
    for config in (
        FinetuneConfig,
        ExportConfig,
        CompareConfig,
        BenchConfig,
        CandidatesConfig,
        LoadgenConfig,
    ):
        flags = list(get_flags(config).values())
        assert len(flags) == len(set(flags)), config


def test_default_text_is_value_or_description() -> None:
    texts = {declared.name: declared.default_text for declared in get_option_fields(Config)}
    assert texts["count"] == "1"
    assert texts["ratio"] == "1"
    assert texts["wait_s"] == "10s"
    assert texts["batch"] == "16 to 64"
    assert texts["models"] == "a,b"
    assert texts["size"] == ""


@given(st.lists(st.integers(-(10**9), 10**9), min_size=1))
def test_parse_list_of_integers_keeps_order(values: list[int]) -> None:
    (threads,) = (field for field in get_option_fields(Config) if field.name == "threads")
    assert threads.parse([", ".join(map(str, values))]) == tuple(dict.fromkeys(values))


@pytest.mark.parametrize("text", ["", ",", "one", "1;2", "1.5", "1,,x"])
def test_parse_list_of_integers_rejects_other_text(text: str) -> None:
    (threads,) = (field for field in get_option_fields(Config) if field.name == "threads")
    with pytest.raises(ConfigError, match=r"^must (not be empty|be integers)"):
        threads.parse([text])


def test_parse_list_joins_texts_without_duplicates() -> None:
    fields = {declared.name: declared for declared in get_option_fields(Config)}
    assert fields["threads"].parse(["1, 2", "2,4"]) == (1, 2, 4)
    assert fields["scopes"].parse(["file"]) == ("file",)
    assert fields["modes"].parse(["none"]) == ()
    assert fields["budget_s"].parse(["1m"]) == 60.0
    with pytest.raises(ConfigError, match="must be integers separated by commas, such as 1,2, got"):
        fields["threads"].parse(["1,1.5"])


def test_raise_config_errors_joins_problems() -> None:
    raise_config_errors([None, None])
    with pytest.raises(ConfigError) as raised:
        raise_config_errors([None, "one", None, "two"])
    assert str(raised.value) == "one\ntwo"


def test_error_in_python_shows_how_to_turn_flag_on() -> None:
    error = EdgetlError("Replace it with {force}, not {data}.", FinetuneConfig)
    assert str(error) == "Replace it with force=True, not data."
    assert format_error(error) == "Replace it with --force, not DATA."


def test_error_names_fields_of_nested_configuration() -> None:
    error = ConfigError("{max_p99_ms} needs {threads}.", Config)
    assert str(error) == "max_p99_ms needs threads."
    assert format_error(error) == "--max-p99 needs --threads."


def test_error_of_worker_process_names_options() -> None:
    error = WeightsError("Use {weights} none.", FinetuneConfig)
    received = error_from_json(json.loads(json.dumps(error_to_json(error))))
    assert type(received) is WeightsError
    assert str(received) == "Use weights none."
    assert format_error(received) == "Use --weights none."


def test_error_of_worker_process_without_configuration() -> None:
    received = error_from_json(
        {"class": "Unknown", "message": "{data} is lost", "config": "os:path"}
    )
    assert type(received) is BenchError
    assert received.config is None
    assert format_error(received) == "{data} is lost"


def test_field_that_is_no_option_is_an_argument() -> None:
    assert get_flags(FinetuneConfig)["data"] == "DATA"
