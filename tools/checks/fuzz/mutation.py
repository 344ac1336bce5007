"""Seeded mutations of bytes and JSON, like those of other versions, manual edits and bad disks."""

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
"""Bytes that are typical of headers."""


def mutate_bytes(content: bytes, other: bytes, generator: np.random.Generator) -> bytes:
    """Return bytes with one to four random changes.

    A change flips a bit, overwrites, removes or repeats a range, truncates, or continues with
    `other`.
    """
    data = bytearray(content)
    for _ in range(int(generator.integers(1, 5))):
        # Headers matter most, so 40% of the changes are in the first 64 bytes.
        limit = len(data) if generator.random() < 0.6 else min(64, len(data))
        start = int(generator.integers(limit))
        length = int(generator.integers(1, 64))
        match int(generator.integers(7)):
            case 0:
                data[start] ^= 1 << int(generator.integers(8))
            case 1:
                data[start : start + length] = generator.bytes(length)
            case 2:
                value = int(generator.choice(_HEADER_BYTES))
                data[start : start + length] = bytes([value]) * length
            case 3:
                del data[start : start + length]
            case 4:
                data[start:start] = data[start : start + length] * int(generator.integers(1, 20))
            case 5:
                data = data[: max(1, start)]
            case _:
                data = data[: max(1, start)] + bytearray(other[start:])
        if not data:
            return b""
    return bytes(data)


def mutate_json(content: Any, generator: random.Random, most: int = 3) -> Any:
    """Return a copy of a JSON value with one to `most` random changes.

    A change replaces a value by one of VALUES or by another value of the document, removes or
    repeats it, or renames a key.
    """
    mutated = copy.deepcopy(content)
    for _ in range(generator.randint(1, most)):
        entries = _list_entries(mutated) if isinstance(mutated, dict | list) else []
        if not entries or generator.random() < 0.02:
            mutated = copy.deepcopy(generator.choice(VALUES))
        else:
            _change(entries, generator)
    return mutated


def _change(entries: list[tuple[Any, Any]], generator: random.Random) -> None:
    parent, key = generator.choice(entries)
    match generator.randrange(5):
        case 0 | 1:
            parent[key] = copy.deepcopy(generator.choice(VALUES))
        case 2:
            other_parent, other_key = generator.choice(entries)
            parent[key] = copy.deepcopy(other_parent[other_key])
        case 3:
            del parent[key]
        case _ if isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        case _:
            parent[f"{key}_"] = parent.pop(key)


def _list_entries(value: Any) -> list[tuple[Any, Any]]:
    """List every (container, key) of a document, but only the first 8 items of each list."""
    entries: list[tuple[Any, Any]] = []
    keys = list(value) if isinstance(value, dict) else range(min(len(value), 8))
    for key in keys:
        entries.append((value, key))
        if isinstance(value[key], dict | list):
            entries += _list_entries(value[key])
    return entries
