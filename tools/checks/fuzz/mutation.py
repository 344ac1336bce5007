"""Seeded mutation of JSON and of bytes: what other versions, devices, people and damaged disks may write into a file."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np

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
_HEADER_BYTES = (0, 1, 0x7F, 0x80, 0xFF)
"""What headers hold."""


def mutate_bytes(content: bytes, other: bytes, generator: np.random.Generator) -> bytes:
    """Return bytes with one to four changes: bits flipped, stretches overwritten, removed, repeated or cut off, or spliced with `other`."""
    data = bytearray(content)
    for _ in range(int(generator.integers(1, 5))):
        at = (
            int(generator.integers(len(data)))
            if generator.random() < 0.6
            else int(generator.integers(min(64, len(data))))
        )
        length = int(generator.integers(1, 64))
        match int(generator.integers(7)):
            case 0:
                data[at] ^= 1 << int(generator.integers(8))
            case 1:
                data[at : at + length] = generator.bytes(length)
            case 2:
                data[at : at + length] = bytes([int(generator.choice(_HEADER_BYTES))]) * length
            case 3:
                del data[at : at + length]
            case 4:
                data[at:at] = data[at : at + length] * int(generator.integers(1, 20))
            case 5:
                data = data[: max(1, at)]
            case _:
                data = data[: max(1, at)] + bytearray(other[at:])
        if not data:
            return b""
    return bytes(data)


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
