"""The classification architectures of torchvision, as a table that needs no torch to read.

architectures.csv is written by tools/repo/architecture_table.py and tested against the installed torchvision;
an architecture that a newer torchvision brings is described on the spot (edgetl.train.model.torchvision_models.describe).
"""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

HeadKind = Literal["linear", "conv"]


@dataclass(frozen=True)
class Architecture:
    """What is known of a stock ImageNet classifier without building it."""

    name: str
    """torchvision's name."""
    family: str
    """torchvision's module: resnet, mobilenetv2, vision_transformer ..."""
    parameters: int
    """Of the network with its 1000 ImageNet classes, auxiliary classifiers left out."""
    image_size: int
    """Side of the square input of torchvision's default weights, pixels."""
    head: str
    """Path of the classification layer, as in `named_modules()`."""
    head_kind: HeadKind
    """Kind of that layer."""
    blocks: int
    """Blocks of the backbone: what `--unfreeze N` counts, see edgetl.train.model.blocks."""
    unfreeze: int
    """Blocks that phase 2 trains by default: the fewest last ones with half of the backbone's parameters.

    For MobileNetV2 these are the 3 of the classic recipe (features[16:]).
    """

    def to_json(self) -> dict[str, Any]:
        """One entry of `edgetl models --json`."""
        return asdict(self)


@cache
def load_architectures() -> dict[str, Architecture]:
    """The table, by name."""
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
