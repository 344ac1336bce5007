"""Parameters of augmented views, drawn by albumentations itself without touching a pixel.

The device then computes the same views as the CPU: the same crop, flip, factors, matrices and holes.
Only the numbers of Gaussian noise differ, which OpenCV's generator gives on the CPU.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgetl.core.errors import ConfigError
from edgetl.train.data.augmentation import Augmentation

ColorOperation = Literal["brightness", "contrast", "saturation", "hue"]
_COLOR_OPERATIONS: tuple[ColorOperation, ...] = ("brightness", "contrast", "saturation", "hue")


@dataclass
class ViewParameters:
    """How one view is made from its image, in the order of the fields."""

    crop: tuple[int, int, int, int] = (0, 0, 0, 0)
    """left, top, right, bottom in pixels of the image."""
    flip: bool = False
    """Mirror left and right."""
    color: tuple[tuple[ColorOperation, float], ...] = ()
    """Operations with their factors, the first applied first."""
    affine: NDArray[np.float64] | None = None
    """3 x 3, from source pixels (x, y, 1) to pixels of the result."""
    perspective: NDArray[np.float64] | None = None
    """3 x 3, as `affine`."""
    blur: NDArray[np.float64] | None = None
    """One-dimensional kernel of odd length, for both axes."""
    noise: tuple[float, int] | None = None
    """(standard deviation in grey levels, seed)."""
    gray: bool = False
    """Replace the colors by their luminance."""
    holes: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 4), np.int64))
    """left, top, right, bottom of rectangles filled with black."""


class ViewSampler:
    """Draws the parameters of views; safe to call from several threads."""

    def __init__(self, augmentation: Augmentation, side: int) -> None:
        """Take the pipeline of one of the built-in strengths.

        Args:
            side: pixels of a view, which is square.

        Raises:
            ConfigError: the pipeline comes from a file; its transforms are unknown.
        """
        if augmentation.strength in (None, "none"):
            raise ConfigError(
                f"Views of the pipeline {augmentation.name} are made on the CPU only."
            )
        self._augmentation = augmentation
        self._side = side
        self._thread_local = threading.local()

    def __call__(self, height: int, width: int, view: int, index: int) -> ViewParameters:
        """Draw the parameters of view number `view` of image number `index`, of height x width pixels."""
        pipeline = self._thread_pipeline
        self._thread_local.drawn = ViewParameters()
        # Only its shape is looked at: no memory is behind it.
        image = np.broadcast_to(np.uint8(0), (height, width, 3))
        seed = self._augmentation.view_seed(view, index)
        pipeline.set_random_seed(seed)
        pipeline(image=image)
        drawn: ViewParameters = self._thread_local.drawn
        if drawn.noise is not None:
            # albumentations has 2^16 noise patterns in all; the view's own seed tells them apart.
            drawn.noise = (drawn.noise[0], seed << 16 | drawn.noise[1])
        return drawn

    @property
    def _thread_pipeline(self) -> Any:
        if not hasattr(self._thread_local, "pipeline"):
            pipeline = self._augmentation.build_pipeline()
            for transform in _leaves(pipeline):
                transform.apply_with_params = partial(
                    self._record_parameters, type(transform).__name__
                )
                if type(transform).__name__ == "GaussNoise":
                    transform.get_params_dependent_on_data = partial(_draw_noise, transform)
            self._thread_local.placeholder = np.zeros((self._side, self._side, 3), np.uint8)
            self._thread_local.pipeline = pipeline
        return self._thread_local.pipeline

    def _record_parameters(
        self, transform: str, params: dict[str, Any], **data: Any
    ) -> dict[str, Any]:
        # Stands in for a transform's own application to the image.
        drawn: ViewParameters = self._thread_local.drawn
        match transform:
            case "RandomResizedCrop":
                left, top, right, bottom = map(int, params["crop_coords"])
                drawn.crop = (left, top, right, bottom)
                return {"image": self._thread_local.placeholder}
            case "HorizontalFlip":
                drawn.flip = True
            case "ColorJitter":
                operations = (_COLOR_OPERATIONS[at] for at in params["order"])
                drawn.color = tuple(
                    (operation, float(params[operation])) for operation in operations
                )
            case "Affine":
                drawn.affine = np.asarray(params["matrix"], np.float64)
            case "Perspective":
                scale = np.diag(
                    [self._side / params["max_width"], self._side / params["max_height"], 1.0]
                )
                drawn.perspective = scale @ np.asarray(params["matrix"], np.float64)
            case "GaussianBlur":
                drawn.blur = np.asarray(params["kernel"], np.float64).ravel()
            case "GaussNoise":
                drawn.noise = params["noise"]
            case "ToGray":
                drawn.gray = True
            case "CoarseDropout":
                drawn.holes = np.asarray(params["holes"], np.int64)
            case _:
                raise ValueError(f"{transform} has no counterpart on the device.")
        return data


def _draw_noise(transform: Any, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    # The same draws as GaussNoise makes, so that those after it are the same too, but no noise.
    deviation = transform.py_random.uniform(*transform.std_range)
    transform.py_random.uniform(*transform.mean_range)
    return {"noise": (255 * deviation, int(transform.random_generator.integers(0, 2**16)))}


def _leaves(composition: Any) -> list[Any]:
    # ColorJitter keeps functions under the same name; compositions keep transforms.
    from albumentations.core.composition import BaseCompose

    if not isinstance(composition, BaseCompose):
        return [composition]
    return [leaf for inner in composition.transforms for leaf in _leaves(inner)]
