"""What the configurations share: all mistakes told at once, named values, times and sizes as people write them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar, get_args

from edgetl.core.errors import ConfigError

Number = TypeVar("Number", int, float)


def split_list(texts: Iterable[str]) -> tuple[str, ...]:
    """Every word of texts that are separated by commas, without repetitions."""
    return tuple(
        dict.fromkeys(word.strip() for text in texts for word in text.split(",") if word.strip())
    )


def parse_numbers(
    option: str, texts: Sequence[str], kind: Callable[[str], Number]
) -> tuple[Number, ...]:
    """The numbers of texts that are separated by commas, without repetitions.

    Raises:
        ConfigError: one is no such number, or a text holds none.
    """
    try:
        found = tuple(dict.fromkeys(kind(word) for word in split_list(texts)))
    except ValueError:
        found = ()
    if texts and not found:
        raise ConfigError(
            f"{option} takes numbers separated by commas, as 1,2,4, not {', '.join(map(repr, texts))}."
        )
    return found


_NUMBER = r"[0-9]{1,15}(?:\.[0-9]{1,15})?"
_BYTES_PER_UNIT = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}


def raise_config_errors(problems: Iterable[str | None]) -> None:
    """Raise ConfigError with every problem that is not None, a line each."""
    found = [problem for problem in problems if problem]
    if found:
        raise ConfigError("\n".join(found))


def check_choice(option: str, value: str, literal: Any) -> str | None:
    """The problem with `value` where it is none of the literal type's."""
    known = get_args(literal)
    return None if value in known else f"{option} takes {', '.join(known)}, not {value!r}."


def config_to_json(config: Any) -> dict[str, Any]:
    """A configuration's fields, paths as text."""
    return {
        key: str(value) if isinstance(value, Path) else value
        for key, value in asdict(config).items()
    }


def parse_duration(text: str) -> float:
    """Seconds of `90`, `90s`, `25m`, `1.5h` or `1h30m`.

    Raises:
        ConfigError: anything else, or nothing at all.
    """
    plain = text.strip().lower()
    if re.fullmatch(_NUMBER, plain):
        return float(plain)
    found = re.fullmatch(rf"(?:({_NUMBER})h)?(?:({_NUMBER})m)?(?:({_NUMBER})s)?", plain)
    if not found or not plain:
        raise ConfigError(f"{text!r} is no length of time. Write it as 90s, 25m or 1h30m.")
    hours, minutes, seconds = (Fraction(number or 0) for number in found.groups())
    return float(3600 * hours + 60 * minutes + seconds)


def parse_milliseconds(text: str) -> float:
    """Milliseconds of `5`, `5ms`, `1.5ms`, `800us` or `0.2s`.

    Raises:
        ConfigError: anything else.
    """
    found = re.fullmatch(rf"({_NUMBER})\s*(us|ms|s)?", text.strip().lower())
    if not found:
        raise ConfigError(f"{text!r} is no latency. Write it as 5ms, 800us or 0.2s.")
    return float(
        Fraction(found[1])
        * {"us": Fraction(1, 1000), "ms": Fraction(1), "s": Fraction(1000)}[found[2] or "ms"]
    )


def parse_size(text: str) -> int:
    """Bytes of `0`, `500MB`, `2GB` or `1.5GiB`.

    Raises:
        ConfigError: anything else.
    """
    found = re.fullmatch(rf"({_NUMBER})\s*([a-z]*)", text.strip().lower())
    if not found or (found[2] or "b") not in _BYTES_PER_UNIT:
        raise ConfigError(f"{text!r} is no size. Write it as 500MB, 2GB or 1.5GiB.")
    # In floats 2.01 * 10**6 is less than 2010000.
    return int(Fraction(found[1]) * _BYTES_PER_UNIT[found[2] or "b"])


def parse_share(text: str) -> float:
    """The share that `5%` or `0.05` stands for.

    Raises:
        ConfigError: anything else.
    """
    found = re.fullmatch(rf"({_NUMBER})\s*(%)?", text.strip())
    if not found:
        raise ConfigError(f"{text!r} is no share. Write it as 5% or 0.05.")
    return float(Fraction(found[1]) / (100 if found[2] else 1))


def parse_height_width(option: str, text: str) -> tuple[int, int]:
    """Parse `480x640` into (height, width).

    Raises:
        ConfigError: it is not two numbers with an x between them.
    """
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text.strip().lower())
    if match is None:
        raise ConfigError(
            f"{option} must be HEIGHTxWIDTH in pixels, such as 480x640, got {text!r}."
        )
    return int(match[1]), int(match[2])
