"""Recipe of a pretraining: validated options, written as TOML next to the resulting weights."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from edgetl.core.errors import ConfigError
from edgetl.core.files import write_text
from tools.pretraining.dataset import Classes

_POSITIVE_FIELDS = (
    "image_side", "shard_images", "first_shards", "window_shards", "reuse", "lr", "clip_gradient",
    "statistics_images",
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Options of a pretraining; equal recipes with `steps` give equal weights on equal machines."""

    model: str = "mobilenet_v3_small"
    """Name of a torchvision architecture."""
    seed: int = 0
    """Seed of the classes, the images, their order and views, and the initial weights."""
    fractals: int = 100
    textures: int = 150
    solids: int = 150
    bodies: int = 150
    """Number of classes of each family."""
    image_side: int = 112
    """Side of the drawn images, pixels."""
    shard_images: int = 2048
    """Images per shard, a file of the pool."""
    first_shards: int = 4
    """Shards available at the first step."""
    window_shards: int = 16
    """Shards that the images of a step are sampled from; older ones are deleted."""
    reuse: int = 6
    """Average number of times an image is used, each time with another view."""
    sides: tuple[int, ...] = (64, 96, 128)
    """Sides of the model's input, pixels, each for an equal share of the training.

    Training starts with small images, of which more fit into the time (Tan and Le, 2021).
    """
    least_crop: float = 0.35
    """Smallest share of an image's area in a view."""
    batch_size: int = 128
    lr: float = 1e-3
    """Peak learning rate of AdamW, after a linear warm-up and before a cosine decay.

    At 3e-3 the training diverged after 700 steps.
    """
    clip_gradient: float = 1.0
    """Maximum L2 norm of the gradient."""
    weight_decay: float = 0.05
    warmup: float = 0.03
    """Share of the training in which the learning rate rises."""
    label_smoothing: float = 0.1
    ema: float = 0.998
    """Decay of the exponential moving average of the weights, which is the result."""
    statistics_images: int = 1024
    """Number of images, drawn at the fine-tuning resolution, for the final BatchNorm statistics."""
    steps: int = 0
    """Length of the training in steps; 0 if `budget_s` is given."""
    budget_s: float = 0.0
    """Length of the training in seconds; 0 if `steps` is given."""

    def __post_init__(self) -> None:
        errors = [
            f"{name} must be above 0, got {getattr(self, name)}"
            for name in _POSITIVE_FIELDS
            if getattr(self, name) <= 0
        ]
        if self.batch_size < 2:
            errors.append(f"batch_size must be at least 2 for BatchNorm, got {self.batch_size}")
        if self.classes.total < 2 or min(self.classes.counts) < 0:
            errors.append("there must be at least 2 classes, and no negative number of classes")
        if not self.sides or min(self.sides) < 32:
            errors.append("sides must be at least 32 pixels")
        if (self.steps > 0) == (self.budget_s > 0):
            errors.append("give either steps or budget_s")
        if errors:
            raise ConfigError(f"Invalid recipe: {'; '.join(errors)}.")

    @property
    def classes(self) -> Classes:
        """Classes of all families."""
        return Classes(self.seed, (self.fractals, self.textures, self.solids, self.bodies))

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values, as in the TOML file."""
        return {**asdict(self), "sides": list(self.sides)}


def read_recipe(path: Path | None, **overrides: Any) -> Recipe:
    """Read a recipe from a TOML file.

    Args:
        path: TOML file; None is the default recipe.
        overrides: values that take precedence over the file; None is ignored.

    Raises:
        ConfigError: the file cannot be read, has an unknown name, or has invalid values.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError) as cause:
        raise ConfigError(f"Cannot read the recipe {path}: {cause}.") from cause
    content |= {name: value for name, value in overrides.items() if value is not None}
    if "steps" in content and overrides.get("budget_s"):
        content["steps"] = 0
    if "budget_s" in content and overrides.get("steps"):
        content["budget_s"] = 0.0
    unknown = sorted(content.keys() - {field.name for field in fields(Recipe)})
    if unknown:
        raise ConfigError(f"The recipe {path} has unknown names: {', '.join(unknown)}.")
    try:
        return Recipe(**{**content, "sides": tuple(content.get("sides", Recipe.sides))})
    except TypeError as cause:
        raise ConfigError(f"The recipe {path} has values of a wrong type: {cause}.") from cause


def write_recipe(path: Path, recipe: Recipe, steps_taken: int | None = None) -> None:
    """Write a recipe as TOML.

    Args:
        path: file to write.
        recipe: recipe to write.
        steps_taken: written as `steps` instead of a time, so that the training can be repeated.
    """
    if steps_taken is not None:
        recipe = replace(recipe, steps=steps_taken, budget_s=0.0)
    comment = (
        "# Follow it with: "
        "python -m tools.pretraining.pretrain --recipe recipe.toml --work DIR -o DIR"
    )
    # Numbers, strings and lists of numbers have the same syntax in JSON and TOML.
    lines = [f"{name} = {json.dumps(value)}" for name, value in recipe.to_json().items()]
    write_text(path, "\n".join([comment, *lines]) + "\n")
