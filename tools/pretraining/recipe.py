"""What a pretraining is asked for: frozen, checked, and written as TOML beside the weights that came of it."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from edgetl.core.errors import ConfigError
from edgetl.core.files import write_text
from tools.pretraining.dataset import Classes


@dataclass(frozen=True)
class Recipe:
    """A pretraining; equal recipes with `steps` give equal weights on equal machines."""

    model: str = "mobilenet_v3_small"
    """torchvision's name."""
    seed: int = 0
    """Of everything: classes, images, their order, their views, the network's beginning."""
    fractals: int = 100
    textures: int = 150
    solids: int = 150
    bodies: int = 150
    """Classes of each family."""
    image_side: int = 112
    """Of the images as they are drawn, pixels."""
    shard_images: int = 2048
    """Images of a file of the pool."""
    first_shards: int = 4
    """Files that training begins with."""
    window_shards: int = 16
    """Files that a step draws from; older ones are removed."""
    reuse: int = 6
    """Times that an image is seen on average; every one in another view."""
    sides: tuple[int, ...] = (64, 96, 128)
    """Of the network's input, pixels, each for an equal share of the training: small images first, as many more fit (Tan and Le, 2021)."""
    least_crop: float = 0.35
    """Smallest share of an image's area that a view shows."""
    batch_size: int = 128
    lr: float = 1e-3
    """AdamW's, at its highest; it rises over `warmup` and falls along a cosine. At 3e-3 the training fell apart after 700 steps."""
    clip_gradient: float = 1.0
    """Largest L2 norm of a step's gradient."""
    weight_decay: float = 0.05
    warmup: float = 0.03
    """Share of the training."""
    label_smoothing: float = 0.1
    ema: float = 0.998
    """Decay of the averaged weights, which are what is kept."""
    statistics_images: int = 1024
    """Images drawn at the fine-tuning resolution at the end, from which BatchNorm's statistics are taken anew."""
    steps: int = 0
    """Length of the training; 0 leaves it to `budget_s`."""
    budget_s: float = 0.0
    """Seconds of the training; 0 leaves it to `steps`."""

    def __post_init__(self) -> None:
        positive = (
            "image_side",
            "shard_images",
            "first_shards",
            "window_shards",
            "reuse",
            "lr",
            "clip_gradient",
            "statistics_images",
        )
        wrong = [f"{name} must be above 0" for name in positive if getattr(self, name) <= 0]
        if self.batch_size < 2:
            wrong.append(
                "batch_size must be 2 or more, because BatchNorm has no statistics of one image"
            )
        if self.classes.total < 2 or min(self.classes.counts) < 0:
            wrong.append("there must be 2 classes or more")
        if not self.sides or min(self.sides) < 32:
            wrong.append("sides must be 32 pixels or more")
        if (self.steps > 0) == (self.budget_s > 0):
            wrong.append("give either steps or budget_s")
        if wrong:
            raise ConfigError(f"The recipe cannot be followed: {'; '.join(wrong)}.")

    @property
    def classes(self) -> Classes:
        """The classes of all families."""
        return Classes(self.seed, (self.fractals, self.textures, self.solids, self.bodies))

    def to_json(self) -> dict[str, Any]:
        """Names and plain values, as in the TOML file."""
        return {**asdict(self), "sides": list(self.sides)}


def read_recipe(path: Path | None, **given: Any) -> Recipe:
    """A recipe from a TOML file (None: the default one) with `given` above it where that is not None.

    Raises:
        ConfigError: unreadable, an unknown name, or values that make no recipe.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError) as cause:
        raise ConfigError(f"The recipe {path} cannot be read: {cause}.") from cause
    content |= {name: value for name, value in given.items() if value is not None}
    if "steps" in content and given.get("budget_s"):
        content["steps"] = 0
    if "budget_s" in content and given.get("steps"):
        content["budget_s"] = 0.0
    unknown = sorted(content.keys() - {field.name for field in fields(Recipe)})
    if unknown:
        raise ConfigError(f"The recipe {path} has unknown names: {', '.join(unknown)}.")
    try:
        return Recipe(**{**content, "sides": tuple(content.get("sides", Recipe.sides))})
    except TypeError as cause:
        raise ConfigError(f"The recipe {path} has values of a wrong kind: {cause}.") from cause


def write_recipe(path: Path, recipe: Recipe, steps_taken: int | None = None) -> None:
    """Write a recipe as TOML; with `steps_taken` as one that is measured in steps, so that another machine can follow it."""
    if steps_taken is not None:
        recipe = replace(recipe, steps=steps_taken, budget_s=0.0)
    # JSON's numbers, strings and lists of numbers are TOML's as well.
    lines = [f"{name} = {json.dumps(value)}" for name, value in recipe.to_json().items()]
    write_text(
        path,
        "# Follow it with: python -m tools.pretraining.pretrain --recipe recipe.toml --work DIR -o DIR\n"
        + "\n".join(lines)
        + "\n",
    )
