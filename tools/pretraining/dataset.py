"""Which class is drawn by what: one numbering over all families of generators, and one function that draws an image of a class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from tools.pretraining.fractals import draw_fractal, random_fractal
from tools.pretraining.shapes import draw_body, draw_solid, random_body, random_solid
from tools.pretraining.textures import Image, draw_texture, random_texture

Make = Callable[[np.random.Generator], Any]
Draw = Callable[[Any, np.random.Generator, int], Image]

FAMILIES: Mapping[str, tuple[Make, Draw]] = {
    "fractals": (random_fractal, draw_fractal),
    "textures": (random_texture, draw_texture),
    "solids": (random_solid, draw_solid),
    "bodies": (random_body, draw_body),
}


@dataclass(frozen=True)
class Classes:
    """How many classes each family has; they are numbered family by family, in the order of FAMILIES."""

    seed: int
    counts: tuple[int, ...]

    @property
    def total(self) -> int:
        """Of all families."""
        return sum(self.counts)

    def family(self, number: int) -> tuple[str, int]:
        """The family of a class and the class's number within it."""
        for name, count in zip(FAMILIES, self.counts, strict=True):
            if number < count:
                return name, number
            number -= count
        raise IndexError(f"there is no class {number + self.total}")

    def draw(self, number: int, instance: int, side: int) -> Image:
        """Image `instance` of a class, uint8 [side, side, 3]; equal arguments give equal pixels."""
        name, within = self.family(number)
        return FAMILIES[name][1](
            _parameters(self.seed, name, within),
            np.random.default_rng([self.seed, number, instance, 1]),
            side,
        )


@lru_cache(maxsize=8192)
def _parameters(seed: int, family: str, number: int) -> Any:
    # Keyed within the family: more classes of one family leave the others' as they are.
    return FAMILIES[family][0](
        np.random.default_rng([seed, list(FAMILIES).index(family), number, 0])
    )
