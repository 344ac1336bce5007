"""Names and tables of classification architectures, readable without torch.

architectures.csv is written by tools/repo/architecture_table.py, timm_architectures.csv by
tools/checks/timm_models.py; tests compare them with the installed libraries. Others are inspected
at run time by `edgetl.train.model.stock_models`.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

from edgetl.core.registry import ARCHITECTURE_SOURCES

HeadKind = Literal["linear", "conv"]


@dataclass(frozen=True)
class Architecture:
    """Properties of an ImageNet classifier that do not require building it."""

    name: str
    """Name of the architecture, as in `--model`."""
    family: str
    """Group of similar architectures: resnet, mobilenetv2, vision_transformer ..."""
    parameters: int
    """Number of parameters with 1000 ImageNet classes, without auxiliary classifiers."""
    image_size: int
    """Side of the square input of the source's pretrained weights, pixels."""
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


def source_of(architecture: str) -> str:
    """Return the source of an architecture: a name in `edgetl.core.registry.ARCHITECTURE_SOURCES`.

    `timm:NAME` has its source as a prefix, `module:function` is a function of the user's own, and
    names without a colon are torchvision's, apart from EfficientNet-Lite.
    """
    prefix, colon, _ = architecture.partition(":")
    if not colon:
        return "efficientnet_lite" if prefix.startswith("efficientnet_lite") else "torchvision"
    return prefix if prefix in ARCHITECTURE_SOURCES else "python"


def file_stem(architecture: str) -> str:
    """Return the name of an architecture as a part of file names, valid on every system."""
    return architecture.replace(":", "-")


def load_architectures() -> dict[str, Architecture]:
    """Read the table of the architectures that need no further package, by name."""
    return _load_table("architectures.csv")


def load_timm_architectures() -> dict[str, Architecture]:
    """Read the table of timm's architectures that were tested, by name."""
    return _load_table("timm_architectures.csv")


def find_architecture(name: str) -> Architecture | None:
    """Return the row of an architecture of either table, or None if they lack it."""
    return load_architectures().get(name) or load_timm_architectures().get(name)


@cache
def _load_table(file: str) -> dict[str, Architecture]:
    table = files("edgetl.core").joinpath(file).read_text(encoding="utf-8")
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
