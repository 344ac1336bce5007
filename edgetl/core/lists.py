"""Lists as people write them on a command line: `1,2,4`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from edgetl.core.errors import ConfigError

Number = TypeVar("Number", int, float)


def words(texts: Iterable[str]) -> tuple[str, ...]:
    """Every word of texts that are separated by commas, without repetitions."""
    return tuple(
        dict.fromkeys(word.strip() for text in texts for word in text.split(",") if word.strip())
    )


def numbers(option: str, texts: Sequence[str], kind: Callable[[str], Number]) -> tuple[Number, ...]:
    """The numbers of texts that are separated by commas, without repetitions.

    Raises:
        ConfigError: one is no such number, or a text holds none.
    """
    try:
        found = tuple(dict.fromkeys(kind(word) for word in words(texts)))
    except ValueError:
        found = ()
    if texts and not found:
        raise ConfigError(
            f"{option} takes numbers separated by commas, as 1,2,4, not {', '.join(map(repr, texts))}."
        )
    return found
