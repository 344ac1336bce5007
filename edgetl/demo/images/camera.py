"""Simulated industrial camera above a conveyor belt: lamp, pose, lens, motion, sensor."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from edgetl.demo.images.shapes import Points
from edgetl.demo.images.surface import Surface
from edgetl.demo.images.textures import (
    FRAME_SIZE,
    FRAME_X,
    FRAME_Y,
    UNIT_PIXELS,
    Plane,
    as_plane,
    blur,
    fine_noise,
    pixel_grid,
    sample_profile,
    smooth_noise,
    smoothstep,
)

BELT_COLORS = ((0.07, 0.07, 0.08), (0.14, 0.15, 0.16), (0.06, 0.17, 0.12), (0.09, 0.15, 0.25))
"""RGB reflectance of black, anthracite, green and blue belts."""


def render_belt(generator: np.random.Generator, size: int, direction: float) -> Plane:
    """Render the reflectance [size, size, 3] of a belt that moves along `direction` (radians)."""
    rows, columns = pixel_grid(size)
    along = columns * np.float32(math.cos(direction)) + rows * np.float32(math.sin(direction))
    across = rows * np.float32(math.cos(direction)) - columns * np.float32(math.sin(direction))
    pitch = 2 * math.pi / generator.uniform(0.02, 0.1) / size
    waves_along = np.sin(along * np.float32(pitch))
    waves_across = np.sin(across * np.float32(pitch * generator.uniform(0.7, 1.4)))
    pattern = (
        waves_along,
        waves_across,
        waves_along * waves_across,
        smoothstep(waves_along * waves_across, 0.3, 0.8),
        np.zeros_like(waves_along),
    )[generator.integers(5)]
    strips = generator.standard_normal(size).astype(np.float32)
    streaks = sample_profile(strips, (across + np.float32(1.5 * size)) * np.float32(0.3))
    spots = smoothstep(smooth_noise(generator, size, int(generator.integers(6, 20))), 1.4, 2.2)
    shade = (
        1
        + generator.uniform(0, 0.12) * pattern
        + generator.uniform(0.02, 0.07) * smooth_noise(generator, size, 4)
        + generator.uniform(0, 0.06) * streaks
        + generator.uniform(0.02, 0.07) * fine_noise(generator, size, generator.uniform(0.3, 1))
        + generator.uniform(-0.15, 0.15) * spots
    )
    color = np.array(BELT_COLORS[generator.integers(len(BELT_COLORS))])
    color = color * generator.uniform(0.75, 1.25) + generator.uniform(-0.01, 0.02, 3)
    return np.clip(as_plane(shade)[..., None] * color.astype(np.float32), 0.005, 1)


@dataclass(frozen=True)
class Scene:
    """Everything in an image except the part: belt, pose, light, lens and sensor."""

    size: int
    belt_reflectance: Plane
    """Reflectance of the belt [size, size, 3]."""
    pose: NDArray[np.float64]
    """Homography from the part's frame to the image."""
    angle: float
    """Rotation of the part in radians."""
    lamp_direction: tuple[float, float, float]
    """Unit vector to the lamp: right, down, towards the camera."""
    lamp_proximity: float
    """Change of the lamp's direction over the part; 0 for an infinitely distant lamp."""
    light_shares: tuple[float, float, float]
    """Shares of ambient light, direct light and highlight."""
    illumination: Plane
    """Color, slope and vignette of the light [size, size, 3]."""
    motion_kernel: Plane
    """Motion blur kernel of the belt during the exposure."""
    defocus_sigma: float
    """Standard deviation of the defocus blur, in pixels."""
    sensor: tuple[float, float, int]
    """Shot noise at white and read noise, in grey levels; JPEG quality."""

    @classmethod
    def sample(
        cls, generator: np.random.Generator, size: int, outline: Points, tone: float
    ) -> Scene:
        """Sample a scene that shows a complete part.

        Args:
            generator: source of random numbers.
            size: side of the image in pixels.
            outline: outline of the part.
            tone: mean reflectance of the part, to which the exposure is adjusted.
        """
        direction, azimuth = generator.uniform(0, math.pi), generator.uniform(0, 2 * math.pi)
        tilt = generator.choice(
            [generator.uniform(0.05, 0.3), generator.uniform(0.4, 0.95)], p=[0.45, 0.55]
        )
        angle, pose = _sample_pose(generator, size, outline)
        return cls(
            size,
            render_belt(generator, size, direction),
            pose,
            angle,
            (
                math.sin(tilt) * math.cos(azimuth),
                math.sin(tilt) * math.sin(azimuth),
                math.cos(tilt),
            ),
            float(generator.uniform(0.1, 0.5)),
            (
                float(generator.uniform(0.15, 0.4)),
                float(generator.uniform(0.35, 0.75)),
                float(generator.uniform(0.3, 1.3)),
            ),
            _sample_illumination(generator, size, azimuth) * np.float32((0.55 / tone) ** 0.6),
            _sample_motion_kernel(generator, direction),
            float(generator.uniform(0.3, 0.8)),
            (
                float(generator.uniform(1.5, 5)),
                float(generator.uniform(0.5, 2)),
                int(generator.integers(72, 96)),
            ),
        )

    def expose(self, surface: Surface, light: Plane) -> Plane:
        """Render the image in grey levels [size, size, 3] before noise.

        `light` is the result of `shade` for `surface`.
        """
        part = cv2.merge([surface.reflectance * light[..., None], surface.metal_mask])
        projection = as_plane(
            cv2.warpPerspective(part, self.pose, (self.size, self.size), flags=cv2.INTER_LINEAR)
        )
        cover = projection[..., 3:]
        reach = 0.028 * self.size
        shift = np.array(
            [[1, 0, -self.lamp_direction[0] * reach], [0, 1, -self.lamp_direction[1] * reach]]
        )
        cast = as_plane(cv2.warpAffine(cover, shift, (self.size, self.size)))
        shadow = 1 - np.float32(0.62 * self.light_shares[1]) * np.maximum(
            blur(cast, 0.011 * self.size), np.float32(0.6) * blur(as_plane(cover[..., 0]), 3.0)
        )
        ambient, direct, _ = self.light_shares
        ground = (
            self.belt_reflectance
            * (np.float32(ambient + direct * self.lamp_direction[2]) * shadow)[..., None]
        )
        radiance = blur(
            (ground * (1 - cover) + projection[..., :3]) * self.illumination, self.defocus_sigma
        )
        if len(self.motion_kernel) > 1:
            radiance = as_plane(cv2.filter2D(radiance, -1, self.motion_kernel))
        return _to_gray_levels(radiance)

    def compute_level_difference(
        self, surface: Surface, light: Plane, other: Surface, other_light: Plane
    ) -> Plane:
        """Return the difference of two surfaces [FRAME, FRAME] in grey levels, with lens blur."""
        gain = np.float32(self.illumination[self.size // 2, self.size // 2, 1])
        first, second = (
            _to_gray_levels(blur(part.reflectance[..., 1] * shading * gain, 1.5))
            for part, shading in ((surface, light), (other, other_light))
        )
        return as_plane(cv2.absdiff(first, second))

    def add_sensor_noise(self, levels: Plane, generator: np.random.Generator) -> NDArray[np.uint8]:
        """Add sensor noise to grey levels and quantize them to 8 bits [size, size, 3]."""
        shot, read, _ = self.sensor
        sigma = np.sqrt(levels * np.float32(shot**2 / 255) + np.float32(read**2))
        noisy = levels + sigma * generator.standard_normal(levels.shape, np.float32)
        pixels: NDArray[np.uint8] = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
        return pixels

    def shade(self, surface: Surface) -> Plane:
        """Compute the light [FRAME, FRAME] reflected by each point of the part, times its mask."""
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        right, down, up = self.lamp_direction
        lamp_x = (
            np.float32(right * cosine + down * sine) - np.float32(self.lamp_proximity) * FRAME_X
        )
        lamp_y = (
            np.float32(down * cosine - right * sine) - np.float32(self.lamp_proximity) * FRAME_Y
        )
        slope_x = -as_plane(cv2.Sobel(surface.height, cv2.CV_32F, 1, 0, scale=0.125))
        slope_y = -as_plane(cv2.Sobel(surface.height, cv2.CV_32F, 0, 1, scale=0.125))
        facing = np.maximum(slope_x * lamp_x + slope_y * lamp_y + np.float32(up), 0) / np.sqrt(
            1 + slope_x**2 + slope_y**2
        )
        half = np.float32(1 + up)
        off_x, off_y = slope_x - lamp_x / half, slope_y - lamp_y / half
        across = (off_x * surface.trace_direction[0] + off_y * surface.trace_direction[1]) ** 2
        along = off_x**2 + off_y**2 - across
        falloff_along, falloff_across = (
            np.float32(-0.5 / spread**2) for spread in surface.roughness
        )
        highlight = np.exp(along * falloff_along + across * falloff_across) * surface.gloss
        # A factory hall is brighter on one side, so slopes that face it are lighter, even far from
        # the highlight of the lamp.
        hall = (
            1
            + np.float32(0.8)
            * np.tanh(np.float32(1.5) * (slope_x + np.float32(0.5) * slope_y))
            * surface.gloss
        )
        ambient, direct, specular = self.light_shares
        light = (
            np.float32(ambient) * hall
            + np.float32(direct) * facing
            + np.float32(specular) * highlight
        )
        return as_plane(light * surface.metal_mask)


def _to_gray_levels(radiance: Plane) -> Plane:
    """Convert radiance to grey levels with a film-like curve that compresses highlights."""
    exposure = 1 - np.exp(radiance * np.float32(-1.35))
    levels: Plane = exposure * (np.float32(1.5 * 255) - np.float32(0.5 * 255) * exposure)
    return levels


def _sample_pose(
    generator: np.random.Generator, size: int, outline: Points
) -> tuple[float, NDArray[np.float64]]:
    """Sample a rotation in radians and a homography with slight perspective.

    The complete part is in the image.
    """
    angle = float(generator.uniform(0, 2 * math.pi))
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    rotated_outline = np.array(outline) @ rotation.T * UNIT_PIXELS
    low, high = rotated_outline.min(axis=0), rotated_outline.max(axis=0)
    scale = min(
        generator.uniform(0.86, 0.96) * size / float((high - low).max()), 1.25 * size / FRAME_SIZE
    )
    margin = (0.97 * size - scale * (high - low)) / 2
    shift = generator.uniform(-1, 1, 2) * margin + size / 2 - scale * (low + high) / 2
    transform = scale * rotation
    corners = (np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) - 0.5) * FRAME_SIZE
    image_corners = corners @ transform.T + shift + generator.uniform(-0.022, 0.022, (4, 2)) * size
    homography = cv2.getPerspectiveTransform(
        (corners + FRAME_SIZE / 2 - 0.5).astype(np.float32), image_corners.astype(np.float32)
    )
    return angle, np.asarray(homography, np.float64)


def _sample_illumination(generator: np.random.Generator, size: int, azimuth: float) -> Plane:
    """Sample the light over the image: slope towards the lamp, vignette, color and patches."""
    rows, columns = (axis / np.float32(size) - np.float32(0.5) for axis in pixel_grid(size))
    slope = 1 + np.float32(generator.uniform(0, 0.5)) * (
        columns * np.float32(math.cos(azimuth)) + rows * np.float32(math.sin(azimuth))
    )
    vignette = 1 - np.float32(generator.uniform(0, 0.6)) * (rows**2 + columns**2)
    patches = 1 + np.float32(generator.uniform(0, 0.07)) * smooth_noise(generator, size, 3)
    warmth = generator.uniform(-0.09, 0.09)
    color = np.array([1 + warmth, 1 + generator.uniform(-0.02, 0.02), 1 - warmth])
    color = color * generator.uniform(0.85, 1.3)
    return (slope * vignette * patches)[..., None] * color.astype(np.float32)


def _sample_motion_kernel(generator: np.random.Generator, direction: float) -> Plane:
    """Sample a short line along the direction of the belt; half of the images have no motion."""
    kernel = np.zeros((5, 5), np.float32)
    travel = generator.uniform(0.5, 2.4)
    if generator.random() < 0.5:
        return np.ones((1, 1), np.float32)
    for offset in np.linspace(-travel / 2, travel / 2, 9):
        x, y = 2 + offset * math.cos(direction), 2 + offset * math.sin(direction)
        left, top = int(x), int(y)
        for column, share_x in ((left, left + 1 - x), (left + 1, x - left)):
            for row, share_y in ((top, top + 1 - y), (top + 1, y - top)):
                kernel[row, column] += share_x * share_y
    return as_plane(kernel / kernel.sum())
