"""Targets of the fuzzer: originals, mutation and use of a file format."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tools.checks.fuzz.mutation import mutate_bytes, mutate_json


@dataclass(frozen=True)
class Target:
    """A file format to fuzz."""

    prepare: Callable[[Path], None]
    """Function that writes valid originals into an empty folder; called once."""
    make_case: Callable[[random.Random, Path, Path], None]
    """Function (generator, originals, case) that writes mutated files to the empty folder `case`."""
    use: Callable[[Path], None]
    """Function that reads the case like a command would; it may raise an EdgetlError."""


def copy_originals(originals: Path, case: Path) -> None:
    """Copy all files into the existing folder of the case."""
    shutil.copytree(originals, case, dirs_exist_ok=True)


def mutate_file(path: Path, generator: random.Random, other: Path | None = None) -> None:
    """Mutate the bytes of a file; splices use `other` or the file itself."""
    content = path.read_bytes() or b"\0"
    other_content = content if other is None else other.read_bytes()
    numpy_generator = np.random.default_rng(generator.getrandbits(64))
    path.write_bytes(mutate_bytes(content, other_content, numpy_generator))


def mutate_json_file(path: Path, generator: random.Random) -> None:
    """Mutate the structure of a JSON file, or its bytes in one case out of eight."""
    if generator.random() < 1 / 8:
        mutate_file(path, generator)
        return
    content = _mutate_document(json.loads(path.read_text(encoding="utf-8")), generator)
    path.write_text(json.dumps(content, allow_nan=True), encoding="utf-8")


def mutate_lines(path: Path, generator: random.Random, values: Sequence[str]) -> None:
    """Remove or repeat lines of a text file, or replace cells by one of `values`."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for _ in range(generator.randint(1, 3)):
        if not lines:
            break
        index = generator.randrange(len(lines))
        match generator.randrange(4):
            case 0:
                del lines[index]
            case 1:
                lines.insert(index, lines[index])
            case _:
                separator = "," if path.suffix == ".csv" else " "
                cells = lines[index].split(separator)
                cells[generator.randrange(len(cells))] = generator.choice(values)
                lines[index] = separator.join(cells)
    path.write_text("\n".join(lines), encoding="utf-8")


def _mutate_document(content: object, generator: random.Random) -> object:
    # Half of the time mutate one field, so that short fields are reached as often as long lists.
    if isinstance(content, dict) and content and generator.random() < 0.5:
        name = generator.choice(list(content))
        return {**content, name: mutate_json(content[name], generator)}
    return mutate_json(content, generator)
