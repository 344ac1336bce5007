"""Parameters of augmented views, sampled by albumentations without computing pixels.

With them the device computes the same views as the CPU: the same crop, flip, factors, matrices and
holes. Only Gaussian noise differs, for which the CPU uses OpenCV's generator.
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
    """Parameters of a view; its steps are applied in the order of the fields."""

    crop: tuple[int, int, int, int] = (0, 0, 0, 0)
    """(left, top, right, bottom) in pixels of the image."""
    flip: bool = False
    """Whether to mirror left and right."""
    color: tuple[tuple[ColorOperation, float], ...] = ()
    """Operations with their factors, in order."""
    affine: NDArray[np.float64] | None = None
    """3 x 3 matrix from source pixels (x, y, 1) to output pixels."""
    perspective: NDArray[np.float64] | None = None
    """3 x 3 matrix like `affine`."""
    blur: NDArray[np.float64] | None = None
    """One-dimensional kernel of odd length, for both axes."""
    noise: tuple[float, int] | None = None
    """(standard deviation in gray levels, seed)."""
    gray: bool = False
    """Whether to replace the colors by their luminance."""
    holes: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 4), np.int64))
    """(left, top, right, bottom) of rectangles to fill with black, int64 [holes, 4]."""


class ViewSampler:
    """Sampler of view parameters; safe to call from several threads."""

    def __init__(self, augmentation: Augmentation, side: int) -> None:
        """Create a sampler for a built-in pipeline.

        Args:
            augmentation: the augmentation.
            side: side of the square views in pixels.

        Raises:
            ConfigError: if the pipeline comes from a file, since its transforms are unknown.
        """
        if augmentation.strength in (None, "none"):
            raise ConfigError(f"The pipeline {augmentation.name} is only supported on the CPU.")
        self._augmentation = augmentation
        self._side = side
        self._thread_local = threading.local()

    def __call__(self, height: int, width: int, view: int, index: int) -> ViewParameters:
        """Sample the parameters of a view of image number `index`, of height x width pixels."""
        pipeline = self._thread_pipeline
        self._thread_local.parameters = ViewParameters()
        # Only the shape is used, so the image needs no memory.
        image = np.broadcast_to(np.uint8(0), (height, width, 3))
        seed = self._augmentation.view_seed(view, index)
        pipeline.set_random_seed(seed)
        pipeline(image=image)
        parameters: ViewParameters = self._thread_local.parameters
        if parameters.noise is not None:
            # albumentations has only 2^16 noise seeds; the view's seed makes them distinct.
            parameters.noise = (parameters.noise[0], seed << 16 | parameters.noise[1])
        return parameters

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
        # Replaces `apply_with_params` of a transform.
        parameters: ViewParameters = self._thread_local.parameters
        match transform:
            case "RandomResizedCrop":
                left, top, right, bottom = map(int, params["crop_coords"])
                parameters.crop = (left, top, right, bottom)
                return {"image": self._thread_local.placeholder}
            case "HorizontalFlip":
                parameters.flip = True
            case "ColorJitter":
                operations = (_COLOR_OPERATIONS[index] for index in params["order"])
                parameters.color = tuple(
                    (operation, float(params[operation])) for operation in operations
                )
            case "Affine":
                parameters.affine = np.asarray(params["matrix"], np.float64)
            case "Perspective":
                scale = np.diag(
                    [self._side / params["max_width"], self._side / params["max_height"], 1.0]
                )
                parameters.perspective = scale @ np.asarray(params["matrix"], np.float64)
            case "GaussianBlur":
                parameters.blur = np.asarray(params["kernel"], np.float64).ravel()
            case "GaussNoise":
                parameters.noise = params["noise"]
            case "ToGray":
                parameters.gray = True
            case "CoarseDropout":
                parameters.holes = np.asarray(params["holes"], np.int64)
            case _:
                raise ValueError(f"{transform} is not supported on the device.")
        return data


def _draw_noise(transform: Any, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    # Draws the same random numbers as GaussNoise, so that later ones stay equal, but no noise.
    deviation = transform.py_random.uniform(*transform.std_range)
    transform.py_random.uniform(*transform.mean_range)
    return {"noise": (255 * deviation, int(transform.random_generator.integers(0, 2**16)))}


def _leaves(composition: Any) -> list[Any]:
    # ColorJitter has an attribute `transforms`, too, but it holds functions.
    from albumentations.core.composition import BaseCompose

    if not isinstance(composition, BaseCompose):
        return [composition]
    return [leaf for inner in composition.transforms for leaf in _leaves(inner)]
