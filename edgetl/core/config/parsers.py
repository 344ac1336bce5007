"""Parsers of option values: durations, latencies, sizes, shares and lists.

fractions is imported in the functions, as it takes 5 ms and no `--help` parses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from edgetl.core.errors import ConfigError

_MAX_VALUE_CHARACTERS = 60
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


def abbreviate(value: Any) -> str:
    """Return the `repr` of a value from a file for a message, shortened."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        # Nested tables, or an integer with too many digits.
        text = type(value).__name__
    if len(text) <= _MAX_VALUE_CHARACTERS:
        return text
    return f"{text[:_MAX_VALUE_CHARACTERS]}..."


def split_list(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the comma-separated words of all texts, without duplicates."""
    return tuple(
        dict.fromkeys(word.strip() for text in texts for word in text.split(",") if word.strip())
    )


def parse_duration(text: str) -> float:
    """Parse a duration such as `90`, `90s`, `25m`, `1.5h` or `1h30m` into seconds.

    Raises:
        ConfigError: The text is empty or not a duration.
    """
    plain = text.strip().lower()
    if re.fullmatch(_NUMBER, plain):
        return float(plain)
    match = re.fullmatch(rf"(?:({_NUMBER})h)?(?:({_NUMBER})m)?(?:({_NUMBER})s)?", plain)
    if not match or not plain:
        raise ConfigError(f"{text!r} is not a duration. Write it as 90s, 25m or 1h30m.")
    from fractions import Fraction

    hours, minutes, seconds = (Fraction(number or 0) for number in match.groups())
    return float(3600 * hours + 60 * minutes + seconds)


def parse_milliseconds(text: str) -> float:
    """Parse a latency such as `5`, `5ms`, `1.5ms`, `800us` or `0.2s` into milliseconds.

    Raises:
        ConfigError: The text is not a latency.
    """
    match = re.fullmatch(rf"({_NUMBER})\s*(us|ms|s)?", text.strip().lower())
    if not match:
        raise ConfigError(f"{text!r} is not a latency. Write it as 5ms, 800us or 0.2s.")
    from fractions import Fraction

    factors = {"us": Fraction(1, 1000), "ms": Fraction(1), "s": Fraction(1000)}
    return float(Fraction(match[1]) * factors[match[2] or "ms"])


def parse_size(text: str) -> int:
    """Parse a size such as `0`, `500MB`, `2GB` or `1.5GiB` into bytes.

    Raises:
        ConfigError: The text is not a size.
    """
    match = re.fullmatch(rf"({_NUMBER})\s*([a-z]*)", text.strip().lower())
    if not match or (match[2] or "b") not in _BYTES_PER_UNIT:
        raise ConfigError(f"{text!r} is not a size. Write it as 500MB, 2GB or 1.5GiB.")
    from fractions import Fraction

    # Fractions, because 2.01 * 10**6 is less than 2010000 in floating point.
    return int(Fraction(match[1]) * _BYTES_PER_UNIT[match[2] or "b"])


def parse_share(text: str) -> float:
    """Parse a share such as `5%` or `0.05`; both are 0.05.

    Raises:
        ConfigError: The text is not a share.
    """
    match = re.fullmatch(rf"({_NUMBER})\s*(%)?", text.strip())
    if not match:
        raise ConfigError(f"{text!r} is not a share. Write it as 5% or 0.05.")
    from fractions import Fraction

    return float(Fraction(match[1]) / (100 if match[2] else 1))


def parse_height_width(text: str) -> tuple[int, int]:
    """Parse `480x640` into (height, width).

    Raises:
        ConfigError: The text is not two numbers separated by an x.
    """
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text.strip().lower())
    if match is None:
        raise ConfigError(f"must be HEIGHTxWIDTH in pixels, such as 480x640, got {text!r}.")
    return int(match[1]), int(match[2])
