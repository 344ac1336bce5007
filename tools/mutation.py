"""Seeded structural mutation of JSON: what other versions, devices and people may write into a file."""

from __future__ import annotations

import copy
import random
from typing import Any

VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**40,
    10**30,
    0.5,
    -1e300,
    "",
    "x",
    "\x1b]0;title\x07",
    "=1+1",
    "../../etc/passwd",
    [],
    [None],
    [[]],
    {},
    {"a": 1},
    {"schema": 1},
)


def mutate_json(content: Any, generator: random.Random, most: int = 3) -> Any:
    """Return a copy of a JSON value with one to `most` changes at random places.

    A change replaces a value by one of VALUES or by another value of the document, removes it, repeats it,
    or renames a key.
    """
    mutated = copy.deepcopy(content)
    for _ in range(generator.randint(1, most)):
        places = _places(mutated) if isinstance(mutated, dict | list) else []
        if not places or generator.random() < 0.02:
            mutated = copy.deepcopy(generator.choice(VALUES))
        else:
            _change(places, generator)
    return mutated


def _change(places: list[tuple[Any, Any]], generator: random.Random) -> None:
    parent, key = generator.choice(places)
    match generator.randrange(5):
        case 0 | 1:
            parent[key] = copy.deepcopy(generator.choice(VALUES))
        case 2:
            other, other_key = generator.choice(places)
            parent[key] = copy.deepcopy(other[other_key])
        case 3:
            del parent[key]
        case _ if isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        case _:
            parent[f"{key}_"] = parent.pop(key)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """List every (container, key) of a document; of a long list only the first values."""
    found: list[tuple[Any, Any]] = []
    keys = list(value) if isinstance(value, dict) else range(min(len(value), 8))
    for key in keys:
        found.append((value, key))
        if isinstance(value[key], dict | list):
            found += _places(value[key])
    return found
