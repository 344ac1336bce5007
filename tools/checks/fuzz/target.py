"""Targets of fuzzing: an original, how a case is made of it, and how edgetl uses the case."""

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
    """One kind of files."""

    prepare: Callable[[Path], None]
    """Writes valid originals into an empty folder, once."""
    make_case: Callable[[random.Random, Path, Path], None]
    """Writes a mutated copy of the originals (second argument) into an empty folder (third)."""
    use: Callable[[Path], None]
    """Reads the case as a command would; an EdgetlError is a proper answer."""


def copy_originals(originals: Path, case: Path) -> None:
    """Copy every file, the folder of the case being there already."""
    shutil.copytree(originals, case, dirs_exist_ok=True)


def mutate_file(path: Path, generator: random.Random, other: Path | None = None) -> None:
    """Mutate the bytes of a file, spliced with `other` or with itself."""
    content = path.read_bytes() or b"\0"
    spliced = content if other is None else other.read_bytes()
    path.write_bytes(
        mutate_bytes(content, spliced, np.random.default_rng(generator.getrandbits(64)))
    )


def mutate_json_file(path: Path, generator: random.Random) -> None:
    """Mutate the structure of a JSON file, or its bytes in one of eight cases."""
    if generator.random() < 1 / 8:
        mutate_file(path, generator)
        return
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(_mutated_part(content, generator), allow_nan=True), encoding="utf-8")


def mutate_lines(path: Path, generator: random.Random, values: Sequence[str]) -> None:
    """Replace, remove or repeat cells or lines of a text file; `values` are what cells may become."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for _ in range(generator.randint(1, 3)):
        if not lines:
            break
        at = generator.randrange(len(lines))
        match generator.randrange(4):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, lines[at])
            case _:
                separator = "," if path.suffix == ".csv" else " "
                cells = lines[at].split(separator)
                cells[generator.randrange(len(cells))] = generator.choice(values)
                lines[at] = separator.join(cells)
    path.write_text("\n".join(lines), encoding="utf-8")


def _mutated_part(content: object, generator: random.Random) -> object:
    # Half of the time within one field, so that short fields are reached as often as long lists.
    if isinstance(content, dict) and content and generator.random() < 0.5:
        name = generator.choice(list(content))
        return {**content, name: mutate_json(content[name], generator)}
    return mutate_json(content, generator)
