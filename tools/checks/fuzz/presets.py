"""Mutated `--config` files and saved albumentations pipelines."""

from __future__ import annotations

import random
from pathlib import Path

import albumentations

from edgetl.core.config.presets import format_preset_toml, resolve_config
from edgetl.core.preprocessing import Preprocessing
from edgetl.train.data.augmentation import Augmentation
from tools.checks.fuzz.target import Target, mutate_file, mutate_json_file, mutate_lines

_VALUES = (
    "1e7", "100000000", "-1", "nan", "inf", "true", '""', '"auto"', '"\\u0000"', "[]", "{}",
    "[" * 2000, "[" * 400 + "]" * 400, "=", "=", "9" * 5000, "1979-05-27T07:32:00Z", '"head"',
    '"1000%"', "0x7fffffffffffffffffff", '"pipeline.json"', "# ", "a.b.c", "epochs", "views",
)  # fmt: skip
_EXTRA = """\
model = "mobilenet_v2"
image-size = 64
seed = 3
budget = "25m"
cache-budget = "2GB"
workers = 2
deterministic = true
"""


def prepare(folder: Path) -> None:
    """Write both presets and two pipelines."""
    for name in ("default", "classic"):
        (folder / f"{name}.toml").write_text(format_preset_toml(name) + _EXTRA, encoding="utf-8")
    steps = [
        albumentations.RandomResizedCrop((64, 64)),
        albumentations.RandomScale((-0.1, 0.5)),
        albumentations.PadIfNeeded(100, 100),
        albumentations.OneOf(
            [albumentations.GaussianBlur(), albumentations.CropAndPad(percent=(0.0, 0.1))]
        ),
        albumentations.LongestMaxSize(128),
        albumentations.CoarseDropout(),
        albumentations.Affine(scale=(0.9, 1.1)),
    ]
    for suffix in ("json", "yaml"):
        albumentations.save(
            albumentations.Compose(steps), folder / f"pipeline.{suffix}", data_format=suffix
        )


def make_case(generator: random.Random, originals: Path, case: Path) -> None:
    """Write one mutated file."""
    path = case / generator.choice(
        ["default.toml", "classic.toml", "pipeline.json", "pipeline.json", "pipeline.yaml"]
    )
    path.write_bytes((originals / path.name).read_bytes())
    if generator.random() < 0.2:
        mutate_file(path, generator)
    elif path.suffix == ".json":
        mutate_json_file(path, generator)
    else:
        mutate_lines(path, generator, _VALUES)


def use(case: Path) -> None:
    """Resolve the configuration, or build the augmentation pipeline."""
    (path,) = case.iterdir()
    if path.suffix == ".toml":
        resolve_config(Path("data"), None, path, {})
    else:
        Augmentation("light", Preprocessing.for_image_size(64), 0, path)


TARGET = Target(prepare, make_case, use)
