"""Numbering of the classes over all families of generators, and drawing of their images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from tools.pretraining.fractals import draw_fractal, random_fractal
from tools.pretraining.shapes import draw_body, draw_solid, random_body, random_solid
from tools.pretraining.textures import Image, draw_texture, random_texture

ClassFactory = Callable[[np.random.Generator], Any]
"""Function that returns the random parameters of a class."""
DrawFunction = Callable[[Any, np.random.Generator, int], Image]
"""Function from parameters, generator and side to an image."""

FAMILIES: Mapping[str, tuple[ClassFactory, DrawFunction]] = {
    "fractals": (random_fractal, draw_fractal),
    "textures": (random_texture, draw_texture),
    "solids": (random_solid, draw_solid),
    "bodies": (random_body, draw_body),
}


@dataclass(frozen=True)
class Classes:
    """Classes of all families, numbered family by family in the order of FAMILIES."""

    seed: int
    counts: tuple[int, ...]
    """Number of classes of each family."""

    @property
    def total(self) -> int:
        """Number of classes of all families."""
        return sum(self.counts)

    def family(self, number: int) -> tuple[str, int]:
        """Return the family of a class and the number of the class within it.

        Raises:
            IndexError: there is no such class.
        """
        for name, count in zip(FAMILIES, self.counts, strict=True):
            if number < count:
                return name, number
            number -= count
        raise IndexError(f"no class {number + self.total}, there are {self.total}")

    def draw(self, number: int, instance: int, side: int) -> Image:
        """Draw image `instance` of a class, uint8 [side, side, 3].

        Equal arguments give equal pixels.
        """
        name, number_in_family = self.family(number)
        _, draw = FAMILIES[name]
        generator = np.random.default_rng([self.seed, number, instance, 1])
        return draw(_class_parameters(self.seed, name, number_in_family), generator, side)


@lru_cache(maxsize=8192)
def _class_parameters(seed: int, family: str, number: int) -> Any:
    # The seed uses the number within the family, so that adding classes to one family does not
    # change the others.
    make_class, _ = FAMILIES[family]
    return make_class(np.random.default_rng([seed, list(FAMILIES).index(family), number, 0]))
