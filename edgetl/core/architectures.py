"""Table of torchvision's classification architectures, readable without torch.

architectures.csv is written by tools/repo/architecture_table.py and tested against the installed
torchvision. Architectures of newer versions of torchvision are inspected at run time by
`edgetl.train.model.torchvision_models`.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

HeadKind = Literal["linear", "conv"]


@dataclass(frozen=True)
class Architecture:
    """Properties of an ImageNet classifier that do not require building it."""

    name: str
    """Name in torchvision."""
    family: str
    """Module in torchvision: resnet, mobilenetv2, vision_transformer ..."""
    parameters: int
    """Number of parameters with 1000 ImageNet classes, without auxiliary classifiers."""
    image_size: int
    """Side of the square input of torchvision's default weights, pixels."""
    head: str
    """Path of the classification layer, as in `named_modules()`."""
    head_kind: HeadKind
    """Type of the classification layer."""
    blocks: int
    """Number of blocks of the backbone as counted by `--unfreeze`, see
    edgetl.train.model.blocks."""
    unfreeze: int
    """Number of blocks that phase 2 trains by default.

    These are the fewest last blocks with half of the backbone's parameters; for MobileNetV2, they
    are the 3 of the classic recipe (features[16:]).
    """


@cache
def load_architectures() -> dict[str, Architecture]:
    """Read the table of architectures, by name."""
    table = files("edgetl.core").joinpath("architectures.csv").read_text(encoding="utf-8")
    return {row["name"]: _parse(row) for row in csv.DictReader(table.splitlines())}


def _parse(row: dict[str, str]) -> Architecture:
    return Architecture(
        name=row["name"],
        family=row["family"],
        parameters=int(row["parameters"]),
        image_size=int(row["image_size"]),
        head=row["head"],
        head_kind="conv" if row["head_kind"] == "conv" else "linear",
        blocks=int(row["blocks"]),
        unfreeze=int(row["unfreeze"]),
    )
